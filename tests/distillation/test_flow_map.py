"""Flow maps before and beside their training: the equation, the network, sampling, files and refusals."""

from itertools import pairwise

import pytest
import torch

import sde_gen
from sde_gen.distillation.distill import prepare_flow_map
from sde_gen.exact.mixtures import GaussianData
from sde_gen.inverse import Gaussian, Matrix
from sde_gen.models.flow_map import FlowMap, flow_map_of
from sde_gen.networks import NETWORKS, make_network

VP = sde_gen.make_sde("vp")
SPACES = {"mlp": ((3,), {"width": 16, "depth": 1}), "unet": ((2, 4, 4), {"width": 8, "multipliers": (1,), "attention": ()})}
SPACES |= {"transformer": ((2, 4, 4), {"width": 16, "depth": 1, "heads": 2})}


def made(network: str = "mlp", conditions: int | None = None, sde: sde_gen.SDE = VP, **options: object) -> sde_gen.ScoreModel:
    """A model with a normaliser, of random weights."""
    shape, sizes = SPACES[network]
    torch.manual_seed(0)
    net = make_network(network, shape, conditions, **sizes)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    units = sde_gen.Normalizer(torch.full((shape[0], *[1] * (len(shape) - 1)), 3.0), torch.full((shape[0], *[1] * (len(shape) - 1)), 0.5))
    model = sde_gen.ScoreModel(net, sde, "edm", "half_log_snr", data_std=0.8, normalizer=units, **options)
    return model.eval().requires_grad_(False)


def states(model: sde_gen.ScoreModel, count: int = 5) -> torch.Tensor:
    return torch.randn(count, *model.network.shape, generator=torch.Generator().manual_seed(1))


class Exact(FlowMap):
    """G of Gaussian data as the mean of E[x_0 | x_u] over the way that the docstring names, by quadrature along the exact flow."""

    law = GaussianData(torch.tensor([0.4, -1.0]), torch.tensor([[0.5, 0.1], [0.1, 0.2]]))

    def along(self, x, t, s):
        moments = self.law.model(self.sde).moments
        ends = torch.tensor([t, s], dtype=torch.float64)
        return moments.flow(x, *self.sde.marginal(ends))

    def mean_prediction(self, x, t, s, **cond):
        first, last = (float(self.sde.half_log_snr(torch.tensor(v, dtype=torch.float64)).exp()) for v in (t, s))
        nodes, weights = torch.tensor(_gauss(40), dtype=torch.float64)
        ratios = first + (last - first) * (nodes + 1) / 2  # even weights in exp(lambda) = alpha/sigma
        times = self.sde.time_of(ratios.log()).tolist()
        found = [w / 2 * self.law.denoise_at(self.along(x, t, u), self.sde, u) for w, u in zip(weights.tolist(), times, strict=True)]
        return torch.stack(found).sum(0)


def _gauss(count):
    import numpy as np

    return np.stack(np.polynomial.legendre.leggauss(count))


def test_jumps_by_the_mean_prediction_are_the_flow_and_compose():
    flow = Exact(lambda x, c: x, VP, times=[VP.t_max, VP.t_min])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, u, s in ((0.9, 0.5, 0.3), (0.6, 0.4, 0.15), (0.3, 0.2, 0.1)):
        torch.testing.assert_close(flow.jump(x, t, s), flow.along(x, t, s), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(flow.jump(flow.jump(x, t, u), u, s), flow.jump(x, t, s), rtol=1e-6, atol=1e-6)
        assert torch.equal(flow.jump(x, t, t), x)


@pytest.mark.parametrize("network", SPACES)
@pytest.mark.parametrize("sde", ["vp", "ve", "subvp"])
def test_an_untrained_flow_map_is_the_models_ddim(network, sde):
    model = made(network, 3, sde_gen.make_sde(sde))
    flow = prepare_flow_map(model, "regression", (1.0, 4.0), 8)
    cond = {"label": torch.tensor([0, 2, 1, 1, 0])}
    for steps in (1, 3, 4):
        how = {"seed": 3, "progress": False, "final": "raw"}
        ours = sde_gen.sample(flow, (5, *model.network.shape), steps=steps, cond=cond | {"strength": 2.5}, **how)
        ddim = sde_gen.sample(model, (5, *model.network.shape), "ddim", grid=flow.grid(steps), cond=cond, **how)
        torch.testing.assert_close(ours.x, ddim.x, rtol=1e-4, atol=1e-4)
        assert ours.nfe.tolist() == [steps] * 5 and not ours.fitted and ours.units == "data"
        assert not torch.allclose(ours.x, sde_gen.sample(flow, (5, *model.network.shape), steps=steps, **how).x, atol=1e-3)


def test_where_a_jump_ends_and_how_strongly_it_is_guided_reaches_every_network_that_takes_numbers():
    for name, kind in NETWORKS.items():
        if name not in SPACES:
            continue
        flow = prepare_flow_map(made(name, 3), "regression", (1.0, 4.0), 8)
        assert isinstance(flow.network, kind)
        for parameter in flow.network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x, label = states(flow), torch.zeros(5, dtype=torch.int64)
        near, far = (flow.mean_prediction(x, 0.8, s, label=label) for s in (0.7, 0.1))
        assert (near - far).abs().max() > 1e-3
        each = torch.tensor([0.7, 0.1, 0.7, 0.1, 0.7], dtype=torch.float64)
        told = flow.mean_prediction(x, torch.full((5,), 0.8, dtype=torch.float64), each, label=label)
        torch.testing.assert_close(
            told, torch.where((each == 0.7)[:, None].reshape(5, *[1] * (x.ndim - 1)), near, far), rtol=1e-4, atol=1e-4
        )
        guided = flow.mean_prediction(x, 0.8, 0.1, label=label, strength=torch.full((5,), 3.0))
        plain = flow.mean_prediction(x, 0.8, 0.1, label=label, strength=torch.ones(5))
        assert (guided - far).abs().max() > 1e-3 and torch.equal(plain, far), "without a strength it is 1"


def test_networks_that_cannot_be_told_are_refused_in_one_line():
    def plain(x, c):
        return x

    with pytest.raises(TypeError, match=r"a network of sde_gen.networks, which can be told more; this one is a function"):
        flow_map_of(sde_gen.ScoreModel(plain, VP), [1.0, 0.1])
    named = make_network("mlp", (3,), {"until": {"kind": "numbers", "size": 1}}, width=8, depth=1)
    with pytest.raises(ValueError, match="tells its network 'until' itself: the model has a condition of that name"):
        flow_map_of(sde_gen.ScoreModel(named, VP), [1.0, 0.1])
    with pytest.raises(TypeError, match="distill takes the ScoreModel whose network a flow map is made of, got FlowMap"):
        sde_gen.distill(prepare_flow_map(made(), "regression", None, 4))


@pytest.mark.parametrize("averaged", [False, True])
def test_files_keep_what_it_is(tmp_path, averaged):
    flow = prepare_flow_map(made("unet", 3), "regression", (0.5, 4.0), 8)
    for parameter in flow.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    other = prepare_flow_map(made("unet", 3), "regression", (0.5, 4.0), 8).network
    sde_gen.save(flow, tmp_path, ema=other if averaged else None)
    found = sde_gen.load(tmp_path)
    assert type(found) is FlowMap and found.times == flow.times and found.strengths == (0.5, 4.0)
    how = {"steps": 3, "cond": {"label": torch.arange(3), "strength": 2.0}, "progress": False}
    expected = sde_gen.sample(flow.with_network(other) if averaged else flow, (3, 2, 4, 4), **how)
    assert torch.equal(sde_gen.sample(found, (3, 2, 4, 4), **how).x, expected.x)


def test_sampling_runs_in_batches_along_times_of_ones_own_and_shows_the_way():
    flow = prepare_flow_map(made(), "regression", None, 8)
    for parameter in flow.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    whole = sde_gen.sample(flow, (7, 3), seed=4, progress=False, trajectory="states")
    assert whole.nfe.tolist() == [4] * 7 and whole.times.tolist() == list(flow.grid(4)[1:])
    torch.testing.assert_close(sde_gen.sample(flow, (7, 3), seed=4, progress=False, batch_size=3, solver="jumps").x, whole.x)
    own = [flow.times[0], 0.6, 0.2]
    out = sde_gen.sample(flow, (7, 3), grid=own, seed=4, progress=False)
    x = sde_gen.sample(flow, (7, 3), grid=[own[0], own[0] - 1e-9], seed=4, progress=False).x
    for t, s in pairwise(own):
        x = flow.jump(x, t, s)
    torch.testing.assert_close(out.x, x, rtol=1e-4, atol=1e-4)
    assert out.units == "normalised" and sde_gen.sample(flow, (7, 3), steps=1, progress=False).units == "data"
    stopped = sde_gen.sample(flow, (7, 3), steps=4, progress=False, step_hook=lambda step, t, x: step == 2)
    assert stopped.nfe.tolist() == [2] * 7


def test_entries_that_are_no_data_are_0():
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[:, 0] = False
    flow = prepare_flow_map(made("unet", mask=mask), "regression", None, 4)
    x = states(flow)
    jumped = flow.jump(x, 0.9, 0.2)
    assert (jumped[:, :, 0] == 0).all() and (jumped[:, :, 1:] != 0).all()
    assert torch.equal(flow.jump(torch.where(mask, x, torch.full_like(x, torch.nan)), 0.9, 0.2), jumped)


def test_it_is_no_denoiser_and_says_so_in_one_line():
    flow = prepare_flow_map(made(), "regression", None, 4)
    x, why = 3 + states(flow), "a flow map only jumps"
    chain = sde_gen.DiscreteChain.from_sde(VP, 10)
    images = x.round().clamp(0, 7).long()
    refused = (
        lambda: sde_gen.log_likelihood(flow, x),
        lambda: sde_gen.bits_per_dim(flow, images, levels=8),
        lambda: sde_gen.elbo(flow, images, chain, levels=8),
        lambda: sde_gen.elbo_continuous(flow, images, levels=8),
        lambda: sde_gen.posterior(flow, sde_gen.Measurement(Matrix(torch.eye(3)), Gaussian(0.1)), x[:1], 2, progress=False),
        lambda: sde_gen.fit_grid(flow, "ddim", 2, (3,)),
        lambda: sde_gen.sample(sde_gen.Wrapper(flow), (2, 3), "ddim", steps=2, progress=False),
        lambda: flow.score(x, 0.5),
        lambda: flow.velocity(x, 0.5),
    )
    for call in refused:
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value).startswith(why) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="a flow map is sampled by its own jumps"):
        sde_gen.encode(flow, x)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"solver": "ddim"}, "sampled by its own jumps, so many steps or the times in grid: leave solver out"),
        ({"snr": 0.1}, "leave snr out"),
        ({"t_start": 0.5, "t_end": 0.1}, "leave t_start, t_end out"),
        ({"grid": "angle"}, "a grid by name is for solvers, got 'angle'"),
        ({"grid": [0.1, 0.5]}, "must be at least two numbers that fall, got shape (2,)"),
        ({"grid": [0.9, 0.5], "steps": 2}, "must be 3 numbers that fall"),
        ({"steps": 9}, "trained for up to 8 steps, got 9"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"final": "denoise"}, "final must be raw or state"),
        ({"final": "soft"}, "unknown final 'soft'"),
        ({"trajectory": "denoised"}, "trajectory must be states"),
        ({"graph": True}, "graph=True captures the loop of a fixed-step solver, and 'jumps' is none"),
        ({"cond": {"strength": 2.0}}, "no guidance was distilled into this flow map"),
        ({"cond": {"until": torch.zeros(4)}}, "the network takes conditions 'label', got 'until'"),
    ],
)
def test_bad_arguments_are_one_line(asked, message):
    flow = prepare_flow_map(made("mlp", 3), "regression", None, 8)
    with pytest.raises((ValueError, TypeError)) as caught:
        sde_gen.sample(flow, (4, 3), progress=False, **asked)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_bad_strengths_times_and_jumps_are_one_line():
    flow = prepare_flow_map(made("mlp", 3), "regression", (1.0, 4.0), 8)
    for strength in (0.5, 4.5, float("nan"), torch.ones(3), torch.full((4,), 9.0)):
        with pytest.raises(ValueError, match="'strength' must be a number from 1 to 4, or one for each of 4 samples"):
            sde_gen.sample(flow, (4, 3), cond={"strength": strength}, progress=False)
    with pytest.raises(ValueError, match=r"a jump goes from t to an earlier s in \[.*\], got 0.2 to 0.3"):
        flow.jump(states(flow), 0.2, 0.3)
    for bad, message in (((0.1, 0.5), "at least two falling times"), ((0.5,), "at least two falling times")):
        with pytest.raises(ValueError, match=message):
            FlowMap(flow.network, VP, bad)
    with pytest.raises(ValueError, match="a lowest and a highest with 1, no guidance, between them"):
        prepare_flow_map(made("mlp", 3), "regression", (2.0, 4.0), 8)
    with pytest.raises(ValueError, match="this network takes none"):
        prepare_flow_map(made(), "regression", (1.0, 4.0), 8)
    with pytest.raises(ValueError, match="unknown method 'progresive'; choose from regression, progressive"):
        sde_gen.distill(made(), method="progresive")
    with pytest.raises(TypeError, match="distill has no setting weighting; it takes steps, batch"):
        sde_gen.distill(made(), weighting="edm")
    with pytest.raises(ValueError, match="must lie along one SDE"):
        sde_gen.distill(made(), teacher=made(sde=sde_gen.make_sde("ve")))
    with pytest.raises(ValueError, match="nodes must be an integer of at least 1, got 0"):
        sde_gen.distill(made(), nodes=0)
    with pytest.raises(ValueError, match="the teacher is guided already, with strength 3"):
        sde_gen.distill(made("mlp", 3), teacher=sde_gen.guide(made("mlp", 3), 3.0), strengths=(1.0, 2.0))


def test_units_are_the_models():
    """What is sampled lies in the data's units, by the normaliser that the model has."""
    flow = prepare_flow_map(made(), "regression", None, 4)

    state = sde_gen.sample(flow, (4, 3), steps=2, progress=False, final="state")
    alpha = float(VP.marginal(torch.tensor(VP.t_min, dtype=torch.float64))[0])
    torch.testing.assert_close(sde_gen.sample(flow, (4, 3), steps=2, progress=False).x, 3 + 0.5 * state.x / alpha)
