"""`sample`: one answer whatever the batch, honest counts, failures that stay where they are."""

from dataclasses import replace

import pytest
import torch
from toys import CountingNetwork, FailingNetwork, LinearPath, ToyDDIM, ToyEuler, all_sdes

import sde_gen
from sde_gen import ScoreModel, Solver, SolverError, make_sde, make_solver, sample
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.networks import make_network
from sde_gen.solvers import SOLVERS, make_grid

SDES = all_sdes()
DATA = GaussianData.correlated()
MIXTURE = MixtureData(
    torch.tensor([0.3, 0.7]), torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])
)
METHODS = {**{name: name for name in SOLVERS}, "toy ddim": ToyDDIM(), "toy euler": ToyEuler()}
every_solver = pytest.mark.parametrize("solver", METHODS)
shown = pytest.mark.parametrize("solver", [name for name in METHODS if name != "toy euler"])  # that one shows no steps


def made(solver: str) -> Solver:
    method = METHODS[solver]
    return make_solver(method) if isinstance(method, str) else method


def steps_of(solver: str, few: int = 10) -> int:
    return 1000 if made(solver).adaptive else few


def default_grid(solver: str) -> str:
    return made(solver).default_grid


def draw(model, shape, solver="em", **options):
    method = METHODS.get(solver, solver)
    options = {"steps": steps_of(solver) if solver in METHODS else 10, "progress": False, "dtype": torch.float64, **options}
    return sample(model, shape, method, **options)


@every_solver
@pytest.mark.parametrize("name, dtype", [("vp", torch.float64), ("toy", torch.float64), ("vp", torch.float32), ("ve", torch.float32)])
def test_batches_of_1_7_and_64_agree(name, solver, dtype):
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    model = MIXTURE.model(SDES[name])
    whole = draw(model, (64, 2), solver, dtype=dtype)
    assert whole.x.dtype == dtype and whole.x.shape == (64, 2) and whole.nfe.shape == whole.failed.shape == (64,)
    sevens = draw(model, (15, 2), solver, dtype=dtype, batch_size=7)  # 7, 7 and 1
    torch.testing.assert_close(sevens.x, whole.x[:15], rtol=tolerance, atol=tolerance)
    singles = draw(model, (2, 2), solver, dtype=dtype, batch_size=1, index_offset=30)
    torch.testing.assert_close(singles.x, whole.x[30:32], rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert torch.equal(sevens.nfe, whole.nfe[:15]) and torch.equal(singles.nfe, whole.nfe[30:32])
    assert not torch.allclose(draw(model, (2, 2), solver, dtype=dtype, seed=1).x, whole.x[:2])
    assert len(torch.unique(whole.x[:, 0])) == 64


@every_solver
@pytest.mark.parametrize("final", ["raw", "denoise"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_calls_are_counted_really(solver, final, batch_size):
    sde, count = make_sde("vp"), 8
    network = CountingNetwork(MIXTURE.score(sde), count)
    model = ScoreModel(network, sde, prediction="score")
    out = draw(model, (count, 2), solver, final=final, batch_size=batch_size, cond={"index": torch.arange(count)})
    assert torch.equal(out.nfe, network.calls) and out.nfe.dtype == torch.int64
    if solver == "em":
        assert out.nfe.tolist() == [10 + (final == "denoise")] * count


@pytest.mark.parametrize(
    ("solver", "name"),
    [*((solver, name) for solver in METHODS for name in ("vp", "toy")), *(("em", name) for name in SDES if name not in ("vp", "toy"))],
)
def test_what_is_made_of_the_state_at_the_end(name, solver):
    sde = SDES[name]
    model = MIXTURE.model(sde)
    for ends, end in (({}, sde.t_min), ({"t_start": 0.6, "t_end": 0.5}, 0.5)):
        state, raw, denoised, default = (draw(model, (4, 2), solver, final=final, **ends) for final in ("state", "raw", "denoise", None))
        torch.testing.assert_close(denoised.x, model.denoise(state.x, end))
        torch.testing.assert_close(raw.x, state.x / float(sde.marginal(torch.tensor(end, dtype=torch.float64))[0]))
        assert torch.equal(denoised.nfe, state.nfe + 1) and torch.equal(raw.nfe, state.nfe)
        assert torch.equal(default.x, (state if ends else denoised).x)
        assert (state.units, raw.units, denoised.units) == ("normalised", "data", "data")


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("solver", ["em", "ode", "toy ddim", "toy euler"])
def test_two_halves_make_a_whole(name, solver):
    """t_start, t_end and x_init: a deterministic solver from t_max to the middle and on to t_min."""
    sde = SDES[name]
    model = MIXTURE.model(sde)
    options = {"em": {"eta": 0.0}, "ode": {"rtol": 1e-8, "atol": 1e-8}}.get(solver, {})
    grid = {"grid": "time"}
    whole = draw(model, (4, 2), solver, final="state", steps=steps_of(solver, 20), **grid, **options)
    middle = 0.5 * (sde.t_max + sde.t_min)
    first = draw(model, (4, 2), solver, t_end=middle, steps=steps_of(solver, 10), **grid, **options)
    second = draw(model, (4, 2), solver, t_start=middle, x_init=first.x, final="state", steps=steps_of(solver, 10), **grid, **options)
    torch.testing.assert_close(second.x, whole.x, rtol=1e-6, atol=1e-6)


def test_noise_is_the_same_with_and_without_x_init(device):
    model = DATA.to(device).model(make_sde("vp"))
    x_init = model.prior.from_noise(torch.ones(4, 2, dtype=torch.float64, device=device))
    start, again, other = (draw(model, (4, 2), "ancestral", x_init=x_init, seed=seed).x for seed in (0, 0, 5))
    assert torch.equal(start, again) and not torch.equal(start, other)
    # Where x_0 = 0 for certain the start is all but forgotten at t_min (by exp(-2 (lambda_0 - lambda_T))): equal noise is left.
    zeros = ScoreModel(lambda x, c: 0 * x, make_sde("vp"), prediction="data")
    free, started = (draw(zeros, (4, 2), "ancestral", x_init=x, final="state", device=device).x for x in (None, x_init))
    torch.testing.assert_close(free, started, rtol=1e-4, atol=1e-7)
    assert not torch.equal(free, started) and free.abs().max() > 1e-4


def test_x_init_is_not_changed():
    x = torch.ones(3, 2, dtype=torch.float64)
    for solver in METHODS:
        draw(DATA.model(make_sde("vp")), (3, 2), solver, x_init=x)
        assert (x == 1).all()


@shown
def test_trajectories(solver):
    sde = make_sde("subvp")
    model = MIXTURE.model(sde)
    states = draw(model, (5, 2), solver, trajectory="states", batch_size=2, final="state")
    denoised = draw(model, (5, 2), solver, trajectory="denoised", batch_size=2, final="state")
    plain = draw(model, (5, 2), solver, final="state")
    length = len(states.times)
    assert states.trajectory.shape == denoised.trajectory.shape == (length, 5, 2) and states.times.dtype == torch.float64
    assert float(states.times[-1]) == sde.t_min and (states.times.diff() < 0).all() and float(states.times[0]) < sde.t_max
    torch.testing.assert_close(states.trajectory[-1], states.x)
    torch.testing.assert_close(states.x, plain.x, rtol=0, atol=1e-3 if made(solver).adaptive else 1e-12)
    assert plain.trajectory is None and plain.times is None
    if not made(solver).adaptive:
        assert length == 10
        if default_grid(solver) != "angle":  # that one knows the data: tests/solvers/test_angle.py
            torch.testing.assert_close(states.times, make_grid(sde, default_grid(solver), sde.t_max, sde.t_min, 10)[1:])
    if solver in ("em", "toy ddim"):  # what a step shows is the prediction that it was made from
        expected = torch.stack([model.denoise(states.trajectory[k], float(states.times[k])) for k in range(length - 1)])
        torch.testing.assert_close(denoised.trajectory[1:], expected)


@shown
def test_a_hook_sees_each_step_and_stops(solver):
    sde = make_sde("vp")
    model, seen = MIXTURE.model(sde), []

    def hook(step, t, x):
        seen.append((step, t, x.clone()))
        return step == 4

    out = draw(model, (3, 2), solver, step_hook=hook)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    # It stopped above t_min: what comes back is the state there, not denoised as if it were at t_min.
    assert torch.equal(out.x, seen[-1][2]) and seen[-1][1] > sde.t_min
    states = draw(model, (3, 2), solver, trajectory="states")
    torch.testing.assert_close(torch.stack([x for _, _, x in seen]), states.trajectory[:4])
    torch.testing.assert_close(torch.tensor([t for _, t, _ in seen], dtype=torch.float64), states.times[:4])
    seen.clear()
    watched = draw(model, (3, 2), solver, step_hook=lambda step, t, x: seen.append(step))
    assert torch.equal(watched.x, draw(model, (3, 2), solver, trajectory="states").x) and len(seen) == len(states.times)


@every_solver
def test_conditions_are_passed_and_split(solver, device):
    sde = make_sde("vp")
    sizes = []

    def network(x, c, shift, label):
        assert len(shift) == len(label) == len(x)
        sizes.append(len(x))
        assert torch.equal(shift[:, 0].long(), label)
        return shift  # x_0 is the condition

    model = ScoreModel(network, sde, prediction="data")
    shift = torch.arange(10.0, dtype=torch.float64)[:, None].expand(10, 2).contiguous()
    out = draw(model, (10, 2), solver, cond={"shift": shift, "label": torch.arange(10)}, batch_size=4, device=device)
    torch.testing.assert_close(out.x, shift.to(device))
    assert max(sizes) == 4


class Affine(torch.nn.Module):
    """The data's units: x = 3 z + 10."""

    def encode(self, x):
        return (x - 10) / 3

    def decode(self, z):
        return 3 * z + 10

    def log_det(self, x):
        return torch.zeros(len(x), dtype=torch.float64)


@pytest.mark.parametrize("solver", ["em", "ode", "toy ddim"])
def test_samples_speak_the_datas_units(solver):
    sde = make_sde("vp")
    plain = DATA.model(sde)
    settings = {"prediction": "score", "prior": "matched", "moments": plain.moments}
    scaled = ScoreModel(plain.network, sde, normalizer=Affine(), **settings)
    for final in ("raw", "denoise"):
        torch.testing.assert_close(draw(scaled, (6, 2), solver, final=final).x, Affine().decode(draw(plain, (6, 2), solver, final=final).x))
    # States above t_min, and a trajectory of states, are in normalised units; denoised ones in the data's.
    assert torch.equal(draw(scaled, (6, 2), solver, t_end=0.5).x, draw(plain, (6, 2), solver, t_end=0.5).x)
    for kind, decode in (("states", lambda x: x), ("denoised", Affine().decode)):
        ours, normalised = (draw(model, (6, 2), solver, trajectory=kind).trajectory for model in (scaled, plain))
        torch.testing.assert_close(ours, decode(normalised))


def test_encoding_takes_the_datas_units():
    sde = make_sde("vp")
    model = ScoreModel(DATA.score(sde), sde, prediction="score", normalizer=Affine())
    x = DATA.sample(5)
    tight = {"rtol": 1e-8, "atol": 1e-8}
    up = draw(model, (5, 2), "ode", x_init=Affine().decode(x), x_init_units="data", t_start=sde.t_min, t_end=0.6, **tight)
    alpha = float(sde.marginal(torch.tensor(sde.t_min, dtype=torch.float64))[0])
    torch.testing.assert_close(up.x, DATA.flow_map(alpha * x, sde, sde.t_min, 0.6), rtol=1e-6, atol=1e-6)
    assert up.units == "normalised"
    with pytest.raises(ValueError, match="unknown x_init_units 'pixels'; choose from normalised, data"):
        draw(model, (5, 2), "ode", x_init=x, x_init_units="pixels")
    back = draw(model, (5, 2), "ode", x_init=up.x, t_start=0.6, final="raw", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.x, Affine().decode(x), rtol=1e-5, atol=1e-5)


BAD, COUNT = 5, 12


def failing(sde, below: float, value: float = float("nan")) -> ScoreModel:
    return ScoreModel(FailingNetwork(MIXTURE.score(sde), BAD, below, value), sde, prediction="score")


@every_solver
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sample_that_fails_is_named_and_the_others_are_what_they_are_alone(solver, value):
    sde = make_sde("vp")
    model = failing(sde, 0.5, value)
    cond = {"index": torch.arange(COUNT)}
    method = METHODS[solver]
    label = solver if isinstance(method, str) else type(method).__name__
    healthy = [i for i in range(COUNT) if i != BAD]
    with pytest.raises(SolverError) as caught:
        draw(model, (COUNT, 2), solver, cond=cond)
    error = caught.value
    assert error.solver == label and error.failed.tolist() == [BAD] and error.healthy.tolist() == healthy
    assert label in str(error) and str(BAD) in str(error) and "\n" not in str(error)
    assert error.x.shape == (COUNT - 1, 2) and torch.isfinite(error.x).all()
    if solver == "toy euler":
        assert error.time is None and error.step is None  # it shows no steps
    else:
        assert error.time <= 0.5 and f"{error.time:.6g}" in str(error)
        if not made(solver).adaptive:
            times = make_grid(sde, default_grid(solver), sde.t_max, sde.t_min, 10).tolist()
            # The first call at a time <= 0.5 poisons the step that starts there, or the one that ends there.
            assert error.time == times[error.step] and times[error.step] <= 0.5 < times[error.step - 2]
    masked = draw(model, (COUNT, 2), solver, cond=cond, on_failure="mask")
    assert masked.failed.tolist() == [i == BAD for i in range(COUNT)]
    assert torch.equal(masked.x[healthy], error.x)
    for i in (0, 7):
        alone = draw(model, (1, 2), solver, cond={"index": torch.tensor([i])}, index_offset=i)
        torch.testing.assert_close(alone.x[0], masked.x[i], rtol=1e-5, atol=1e-5)


def test_a_failure_in_a_later_batch_keeps_the_batches_before():
    sde = make_sde("vp")
    cond = {"index": torch.arange(COUNT)}
    whole = draw(failing(sde, 0.5), (COUNT, 2), cond=cond, on_failure="mask")
    for batch_size in (1, 4):
        with pytest.raises(SolverError) as caught:
            draw(failing(sde, 0.5), (COUNT, 2), cond=cond, batch_size=batch_size)
        error = caught.value
        done = 6 if batch_size == 1 else 8
        assert error.failed.tolist() == [BAD] and error.healthy.tolist() == [i for i in range(done) if i != BAD]
        torch.testing.assert_close(error.x, whole.x[error.healthy])
        masked = draw(failing(sde, 0.5), (COUNT, 2), cond=cond, batch_size=batch_size, on_failure="mask")
        assert torch.equal(masked.failed, whole.failed)
        torch.testing.assert_close(masked.x[~masked.failed], whole.x[~whole.failed])


def test_a_failure_of_the_last_denoising_call_is_at_the_end():
    sde = make_sde("vp")
    model = failing(sde, sde.t_min)
    cond = {"index": torch.arange(COUNT)}
    assert not draw(model, (COUNT, 2), cond=cond, final="raw").failed.any()
    with pytest.raises(SolverError) as caught:
        draw(model, (COUNT, 2), cond=cond)
    assert caught.value.failed.tolist() == [BAD] and (caught.value.time, caught.value.step) == (sde.t_min, 10)


@pytest.mark.parametrize("solver", ["em", "pc", "ancestral"])
def test_the_step_named_is_that_of_the_path_that_failed(solver):
    # Where the noise decides when a sample fails, looking for the step must follow the same noise.
    sde = make_sde("vp")
    model = ScoreModel(lambda x, c: torch.where(x.abs() > 2.2, float("nan"), MIXTURE.score_at(x, sde, c)), sde, prediction="score")
    found = set()
    for seed in range(8):
        states = draw(model, (4, 2), solver, seed=seed, trajectory="states", on_failure="mask", steps=40)
        broken = ~torch.isfinite(states.trajectory).flatten(1).all(1)
        if not broken.any():
            continue
        first = int(broken.nonzero()[0])
        with pytest.raises(SolverError) as caught:
            draw(model, (4, 2), solver, seed=seed, steps=40)
        assert (caught.value.step, caught.value.time) == (first + 1, float(states.times[first]))
        found.add(first)
    assert len(found) > 2


def test_all_samples_may_fail():
    model = ScoreModel(lambda x, c: x * float("nan"), make_sde("vp"))
    for solver in METHODS:
        with pytest.raises(SolverError, match="2 of 2 samples") as caught:
            draw(model, (2, 2), solver)
        assert caught.value.x.shape == (0, 2) and len(caught.value.healthy) == 0
        assert draw(model, (2, 2), solver, on_failure="mask").failed.all()


# Annealed Langevin dynamics of fixed snr does not converge to the data: tests/solvers/test_langevin.py has what it does.
@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in SDES), ("vp", torch.float64)])
@pytest.mark.parametrize("solver", [name for name in METHODS if name not in ("toy euler", "langevin")])
def test_gaussian_data_from_every_pair(name, solver, dtype):
    """End to end and loose (the exact recursions are in tests/solvers): the right mean, spread and correlation."""
    out = draw(DATA.model(SDES[name]), (1000, 2), solver, steps=steps_of(solver, 60), dtype=dtype)
    assert out.x.dtype == dtype
    torch.testing.assert_close(out.x.mean(0).double(), DATA.mean, rtol=0, atol=0.15)
    torch.testing.assert_close(out.x.T.cov().double(), DATA.covariance, rtol=0.3, atol=0.05)


def test_dtype_and_device_come_from_the_parameters():
    class Net(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2, dtype=dtype)

        def forward(self, x, c):
            return self.linear(x)

    for dtype in (torch.float32, torch.float64):
        model = ScoreModel(Net(dtype), make_sde("vp"))
        assert sample(model, (2, 2), "em", steps=3, progress=False).x.dtype == dtype
    assert sample(DATA.model(make_sde("vp")), (2, 2), "em", steps=3, progress=False).x.dtype == torch.float32
    x_init = torch.zeros(2, 2, dtype=torch.float64)
    assert sample(DATA.model(make_sde("vp")), (2, 2), "em", steps=3, x_init=x_init, progress=False).x.dtype == torch.float64


def test_no_gradient_is_kept_but_guidance_may_differentiate():
    def network(x, c):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad((-0.5 * y**2).sum(), y)[0]

    out = draw(ScoreModel(network, make_sde("vp"), prediction="score"), (3, 2))
    assert not out.x.requires_grad and torch.isfinite(out.x).all()


def test_defaults_and_quiet(capsys):
    out = sample(DATA.model(make_sde("vp")), (2, 2))
    assert out.nfe.tolist() == [2 * 100 + 1] * 2
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_an_unregistered_sde_and_solver_run_with_no_edit():
    assert "toy" not in SOLVERS and not any(issubclass(type(method), ToyDDIM) for method in SOLVERS.values())
    model = DATA.model(LinearPath())
    out = sample(model, (4000, 2), ToyDDIM(), steps=100, dtype=torch.float64, progress=False)
    torch.testing.assert_close(out.x.T.cov(), DATA.covariance, rtol=0.1, atol=0.03)
    with pytest.raises(SolverError, match="solver 'ToyDDIM'"):
        sample(ScoreModel(lambda x, c: x / 0, LinearPath()), (2, 2), ToyDDIM(), progress=False)


def test_a_plan_is_made_once_for_equal_settings_and_times():
    class Counting(ToyDDIM):
        plans = 0

        def __init__(self, scale=1.0):
            self.scale = scale

        def plan(self, sde, times):
            type(self).plans += 1
            return [replace(update, b=(self.scale * update.b[0],)) for update in super().plan(sde, times)]

    model = DATA.model(make_sde("vp"))
    whole = sample(model, (6, 2), Counting(), steps=5, progress=False, dtype=torch.float64)
    split = sample(model, (6, 2), Counting(), steps=5, batch_size=2, progress=False, dtype=torch.float64)
    assert Counting.plans == 1
    torch.testing.assert_close(split.x, whole.x)
    for method, steps in ((Counting(2.0), 5), (Counting(), 6), (Counting(torch.tensor(2.0)), 5), (Counting(torch.tensor(2.0)), 5)):
        before = Counting.plans
        other = sample(model, (6, 2), method, steps=steps, progress=False, dtype=torch.float64)
        assert Counting.plans == before + 1 and not torch.allclose(other.x, whole.x)
    sample(DATA.model(make_sde("vp", beta_max=10.0)), (6, 2), Counting(), steps=5, progress=False)
    assert Counting.plans == 6


def test_a_graph_is_for_fixed_steps_and_changes_nothing_on_other_devices():
    model = ScoreModel(lambda x, c: 0.1 * x, make_sde("vp"))
    options = {"solver": "pc", "steps": 5, "batch_size": 2, "progress": False}
    plain, captured = sample(model, (5, 3), **options), sample(model, (5, 3), **options, graph=True)
    assert torch.equal(plain.x, captured.x) and torch.equal(plain.nfe, captured.nfe)
    with pytest.raises(ValueError, match="graph=True captures the loop of a fixed-step solver, and 'ode' is none"):
        sample(model, (5, 3), "ode", graph=True)


@pytest.mark.parametrize("name", SDES)
def test_a_grid_in_float32_speaks_the_same_units(name):
    """Its ends are t_min and t_max to float32's rounding alone."""
    sde = SDES[name]
    plain = DATA.model(sde)
    model = ScoreModel(plain.network, sde, prediction="score", normalizer=Affine(), moments=plain.moments)
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, 8)
    exact, rounded = (draw(model, (5, 2), "ddim", steps=8, grid=grid) for grid in (times, times.float()))
    torch.testing.assert_close(rounded.x, exact.x, rtol=1e-3, atol=1e-3)
    assert rounded.units == exact.units == "data" and torch.equal(rounded.nfe, exact.nfe)
    z = sde_gen.encode(model, exact.x, "ddim", grid=times.flip(0).float())
    assert float(z.std()) < 3 * max(1.0, sde.prior_std)


def test_times_for_an_adaptive_solver_are_no_cap_on_its_steps():
    sde = make_sde("vp")
    model = MIXTURE.model(sde)
    times = make_grid(sde, "half_log_snr", sde.t_max, sde.t_min, 5)
    assert not draw(model, (5, 2), "ode", grid=times).failed.any()


def test_a_hook_cannot_steer_a_solver():
    model = MIXTURE.model(make_sde("vp"))
    for solver in ("em", "ode", "adaptive_sde"):
        watched = draw(model, (3, 2), solver, step_hook=lambda step, t, x: x.zero_() is None)
        assert torch.equal(watched.x, draw(model, (3, 2), solver, step_hook=lambda step, t, x: None).x)


def test_the_device_is_the_models():
    model = ScoreModel(make_network("mlp", (2,), width=16, depth=1), make_sde("vp"))
    with pytest.raises(ValueError, match=r"the model is on cpu and its states are there too: move it, model.to\('cuda:1'\), or leave"):
        draw(model, (3, 2), "ddim", device="cuda:1")
    assert draw(model, (3, 2), "ddim", device="cpu", dtype=torch.float32).x.device.type == "cpu"
