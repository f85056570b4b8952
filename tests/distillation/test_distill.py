"""Distillation, judged by flows that are known: exact teachers, and a network that has seen nothing else."""

from itertools import pairwise

import pytest
import torch
from conditional_laws import BOTH, UNITS, VP, Labelled
from conditional_laws import model as exact

import sde_gen
from sde_gen.distillation.distill import prepare_flow_map, settings_of, train_flow_map
from sde_gen.distillation.objective import METHODS, JumpObjective
from sde_gen.distillation.trajectories import PART, Trajectories, draw_trajectories
from sde_gen.models.flow_map import FlowMap
from sde_gen.networks import make_network

TEACHER = exact(Labelled(), normalizer=UNITS, moments=BOTH.model(VP).moments)
QUICK = {"steps": 450, "batch": 96, "lr": 4e-3, "trajectories": 1536, "device": "cpu", "progress": False}


def student(conditions=2, **options):
    """A network of 2-D data that has not been trained."""
    torch.manual_seed(0)
    net = make_network("mlp", (2,), conditions, width=48, depth=2)
    return sde_gen.ScoreModel(net, VP, "edm", "half_log_snr", data_std=0.9, normalizer=UNITS, moments=TEACHER.moments, **options).eval()


def converged(teacher, count, cond=None, seed=7):
    how = {"steps": 80, "cond": cond, "seed": seed, "final": "raw", "progress": False}
    return sde_gen.sample(teacher, (count, 2), "angle", dtype=torch.float32, **how).x


def error(flow, teacher, steps, cond=None, told=None, count=1000):
    """Root mean square difference of samples from the flow's, from the same noise, in normalised units."""
    ours = sde_gen.sample(flow, (count, 2), steps=steps, cond=(cond or {}) | (told or {}), seed=7, progress=False).x
    return float(((ours - converged(teacher, count, cond)) / UNITS.scale).square().mean().sqrt())


@pytest.fixture(scope="module")
def distilled():
    """With labels and strengths from 1 to 3, from the exact mixture."""
    label = torch.arange(200) % 2
    return sde_gen.distill(student(), teacher=TEACHER, cond={"label": label}, drop=0.3, strengths=(1.0, 3.0), **QUICK)


def test_one_two_and_four_calls_come_near_the_exact_flow(distilled):
    label = {"label": torch.arange(1000) % 2}
    untrained = prepare_flow_map(student(), "regression", (1.0, 3.0), 16)
    for steps, most in ((1, 0.09), (2, 0.07), (4, 0.07)):
        assert error(distilled, TEACHER, steps, label) < most
        assert error(distilled, TEACHER, steps) < 1.5 * most, "a share of the trajectories is told no label"
        assert error(untrained, TEACHER, steps, label) > 0.5


def test_the_strength_of_guidance_is_a_condition(distilled):
    label = {"label": torch.arange(1000) % 2}
    guided = sde_gen.guide(TEACHER, 2.5)
    told = {"strength": 2.5}
    apart = float(((converged(guided, 1000, label) - converged(TEACHER, 1000, label)) / UNITS.scale).square().mean().sqrt())
    for steps in (1, 4):
        assert error(distilled, guided, steps, label, told) < 0.1 < 0.5 * apart
    assert int(sde_gen.sample(distilled, (3, 2), steps=4, cond={"label": torch.zeros(3).long()} | told, progress=False).nfe[0]) == 4


def test_a_guided_teacher_is_followed_without_a_strength():
    label = torch.arange(300) % 2
    guided = sde_gen.guide(TEACHER, 2.5)
    flow = prepare_flow_map(student(), "regression", None, 4, guided)
    drawn = draw_trajectories(guided, flow, 300, {"label": label})
    x = converged(guided, 300, {"label": drawn.cond["label"]}, seed=0)
    alpha = float(VP.marginal(torch.tensor(VP.t_min, dtype=torch.float64))[0])
    torch.testing.assert_close(UNITS.decode(drawn.states[:, -1] / alpha), x, rtol=0.05, atol=0.6)


def test_progressive_learns_long_jumps_from_short_ones():
    """The trajectories' ends are spoilt: only one that never looks at them can be right."""
    flow = prepare_flow_map(student(None), "progressive", None, 4)
    drawn = draw_trajectories(TEACHER, flow, 512, {})
    settings = settings_of({"steps": 350, "batch": 64, "lr": 4e-3})

    def from_each(method):
        objective, draw = JumpObjective(settings, flow, method), None
        draw = objective.draw(flow, (256, *drawn.states.shape[1:]), torch.Generator().manual_seed(0))
        long = (draw.level[:, 1] - draw.level[:, 0]) > 1
        x, other = drawn.states[:256], drawn.states[:256].clone()
        other[torch.arange(256), draw.level[:, 1]] += 1.0
        moved = (objective(flow, other, draw) - objective(flow, x, draw)).abs() > 1e-6
        return moved, long

    moved, long = from_each("regression")
    assert moved.all()
    moved, long = from_each("progressive")
    assert torch.equal(moved, ~long) and long.any() and not long.all()
    found = train_flow_map(flow, drawn, settings, "progressive", progress=False).model
    assert error(found, TEACHER, 1) < 0.45 and error(found, TEACHER, 4) < 0.45


@pytest.mark.parametrize("nodes", [1, 3, 6, 16])
def test_jumps_are_drawn_between_all_times_and_from_all_even_steps(nodes):
    flow = prepare_flow_map(student(None), "regression", None, nodes)
    objective = JumpObjective(settings_of({}), flow)
    level = objective.draw(flow, (20_000, nodes + 1, 2), torch.Generator().manual_seed(0)).level
    assert (level[:, 0] < level[:, 1]).all() and level.min() == 0 and level.max() == nodes
    pairs = {tuple(pair) for pair in level.tolist()}
    assert len(pairs) == nodes * (nodes + 1) // 2, "every jump is learned"
    shares = {pair: (level == torch.tensor(pair)).all(1).double().mean() for pair in pairs}
    assert shares[0, nodes] > 0.13, "one of a few numbers of steps is 1"
    for steps in (1, 2, 4):
        if steps <= nodes:
            ends = [flow.times.index(t) for t in flow.grid(steps).tolist()]
            assert all(shares[pair] > 0.02 for pair in pairwise(ends))


def test_trajectories_are_the_teachers_flow_with_what_they_were_told():
    flow = prepare_flow_map(student(), "regression", (1.0, 3.0), 16)
    label = torch.tensor([0, 1, 1])
    drawn = draw_trajectories(TEACHER, flow, 3 * PART + 5, {"label": label}, 0.25, seed=3)
    assert drawn.states.shape == (3 * PART + 5, 17, 2) and len(drawn) == 3 * PART + 5
    shares = [(drawn.cond["label"] == k).double().mean() for k in range(3)]
    assert abs(shares[2] - 0.25) < 0.06 and abs(shares[1] - 2 * shares[0]) < 0.12, "labels in the data's shares, a quarter not told"
    strength = drawn.cond["strength"]
    places = sorted({round(float(s), 6) for s in strength})
    assert len(places) == 4 and all(int((s - 1) / 0.5) == k for k, s in enumerate(places)), "one in each quarter of the range"
    rows = slice(PART, PART + 40)
    w = float(strength[PART])
    cond = {"label": drawn.cond["label"][rows]}
    times = torch.tensor(flow.times, dtype=torch.float64)
    for k in (0, 7, 15):
        how = {"steps": 60, "t_start": flow.times[k], "x_init": drawn.states[rows, k], "final": "state", "progress": False}
        end = sde_gen.sample(sde_gen.guide(TEACHER, w), (40, 2), "dpm", cond=cond, dtype=torch.float32, **how).x
        torch.testing.assert_close(drawn.states[rows, -1], end, rtol=0.02, atol=0.03)
    assert times[0] == VP.t_max and times[-1] == VP.t_min
    again = draw_trajectories(TEACHER, flow, PART, {"label": label}, 0.25, seed=3, seconds=1e-9)
    assert len(again) == PART, "a part at least"
    few = draw_trajectories(TEACHER, flow, 3 * PART, {"label": label}, 0.25, seed=3, seconds=1e-9)
    assert len(few) == PART, "no more than time allows"


def test_what_is_measured_was_not_trained_on_and_a_straight_line_is_beside_it():
    flow = prepare_flow_map(student(None), "regression", None, 8)
    states = torch.randn(80, 9, 2, generator=torch.Generator().manual_seed(0))
    flow.network.requires_grad_(True)
    seen = []
    settings = settings_of({"steps": 40, "batch": 32, "evaluations": 1})
    objective = JumpObjective(settings, flow)
    result = train_flow_map(
        flow, Trajectories(states), settings, "regression", progress=False, on_evaluate=lambda step, r: seen.append(step)
    )
    trainer = result.trainer
    held, rest = trainer.validation.x_0, trainer.x
    assert len(held) + len(rest) == 80 and not (held[:, None] == rest[None]).flatten(2).all(2).any()
    assert seen == [40] and len(result.history[-1]["level_loss"]) == 8 == len(result.linear["linear"])
    last = states[:, -1].square().mean()
    straight = prepare_flow_map(student(None), "regression", None, 8)
    straight.network.requires_grad_(False)
    expected = [
        float((straight.jump(held[:, k], straight.times[k], VP.t_min) - held[:, -1]).square().mean() / held[:, -1].square().mean())
        for k in range(8)
    ]
    assert last > 0 and result.linear["linear"] == pytest.approx(expected, rel=1e-4)
    ours = [
        float((result.model.jump(held[:, k], flow.times[k], VP.t_min) - held[:, -1]).square().mean() / held[:, -1].square().mean())
        for k in range(8)
    ]
    assert result.history[-1]["level_loss"] == pytest.approx(ours, rel=1e-4)
    assert objective.encode(flow, states.double()).dtype == torch.float32 and torch.equal(objective.encode(flow, states), states)


def test_it_goes_on_bit_for_bit(tmp_path):
    flow = prepare_flow_map(student(None), "regression", None, 4)
    drawn = draw_trajectories(TEACHER, flow, 64, {})
    settings = settings_of({"steps": 12, "batch": 16})
    start = {name: value.clone() for name, value in flow.network.state_dict().items()}
    kept = []

    def keep(step, result):
        if step == 5:
            sde_gen.save(result.raw, tmp_path, ema=result.model.network, state=result.state())
            kept.append(step)

    whole = train_flow_map(flow, drawn, settings, "regression", progress=False, on_checkpoint=keep, checkpoint_seconds=1e-9).model
    flow.network.load_state_dict(start)
    from sde_gen.training import read_state

    again = train_flow_map(flow, drawn, settings, "regression", progress=False, resume=read_state(tmp_path)).model
    assert kept == [5] and isinstance(again, FlowMap) and type(sde_gen.load(tmp_path)) is FlowMap
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_time_is_shared_out_and_defaults_are_its_own():
    assert settings_of({}).batch == 64 and settings_of({}).drop == 0.0 and settings_of({"lr": 1e-4}).lr == 1e-4
    flow = sde_gen.distill(student(None), teacher=TEACHER, max_seconds=1.0, nodes=4, batch=32, device="cpu", progress=False)
    assert isinstance(flow, FlowMap) and set(METHODS) == {"regression", "progressive"}
