"""The adaptive probability flow: scipy and the Gaussian flow map are the oracles; every sample is its own problem."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from toys import CountingNetwork, FailingNetwork, all_sdes

from sde_gen import ScoreModel, SolverError, make_sde, sample
from sde_gen.exact.mixtures import GaussianData, MixtureData, RingData
from sde_gen.solvers.ode import WATCHED, A, Angle, C, E

SDES = all_sdes()
GAUSSIAN = GaussianData.correlated()
MIXTURE = MixtureData(
    torch.tensor([0.3, 0.7]), torch.tensor([[0.8, 0.3], [-0.6, -0.4]]), torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.1]]])
)
every = pytest.mark.parametrize("name", SDES)


def flow(model, x, start, end, **options):
    return sample(model, x.shape, "ode", x_init=x, t_start=start, t_end=end, final="state", progress=False, dtype=x.dtype, **options)


def prior_draws(model, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    return model.prior.from_noise(torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).to(device))


def test_the_tableau_has_order_five_with_a_fourth_order_estimate():
    rows = np.zeros((7, 7))
    for i, row in enumerate(A):
        rows[i, : len(row)] = row
    c, fifth, fourth = np.array(C), rows[6], rows[6] - np.array(E)
    assert np.allclose(rows.sum(1), c)
    for weights, order in ((fifth, 5), (fourth, 4)):
        for k in range(1, order + 1):
            assert weights @ c ** (k - 1) == pytest.approx(1 / k)
        assert weights @ rows @ c == pytest.approx(1 / 6)
        assert weights @ rows @ rows @ c == pytest.approx(1 / 24) and weights @ (c * (rows @ c)) == pytest.approx(1 / 8)
    assert fifth @ rows @ rows @ rows @ c == pytest.approx(1 / 120)
    assert fourth @ c**4 != pytest.approx(1 / 5)


@every
@pytest.mark.parametrize("data_std", [0.5, 1.0, 3.0])
def test_the_angle_is_a_clock(name, data_std):
    sde = SDES[name]
    path = Angle(sde, data_std)
    for t in (sde.t_min, 0.3, 0.8, sde.t_max):
        assert float(path.time(torch.tensor(path.angle(t), dtype=torch.float64))) == pytest.approx(t, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in SDES if name != "ddpm"])  # scipy steps over each of its 999 kinks
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_against_solve_ivp(name, tolerance):
    """A mixture's flow from t_max to t_min by scipy, in t and through `velocity`, rtol 1e-10."""
    sde = SDES[name]
    model = MIXTURE.model(sde)
    x = prior_draws(model, 8)

    def field(t: float, state: np.ndarray) -> np.ndarray:
        return model.velocity(torch.from_numpy(state.reshape(8, 2)), t).numpy().ravel()

    oracle = solve_ivp(field, (sde.t_max, sde.t_min), x.numpy().ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    exact = torch.from_numpy(oracle.y[:, -1].reshape(8, 2))
    out = flow(model, x, sde.t_max, sde.t_min, rtol=tolerance, atol=tolerance)
    assert (out.x - exact).abs().max() < 10 * tolerance
    assert not out.failed.any()


@pytest.mark.parametrize("name, shape", [*((name, (1, 2, 3)) for name in SDES), ("vp", (2,))])
def test_gaussian_flow_map_both_ways(name, shape, device):
    sde, size = SDES[name], int(np.prod(shape))
    factor = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = factor @ factor.T / size + 0.05 * torch.eye(size, dtype=torch.float64)
    data = GaussianData(torch.linspace(-1, 1, size).reshape(shape), covariance).to(device)
    model = data.model(sde)
    x = data.sample(6)
    for start, end in ((sde.t_min, sde.t_max), (0.3, 0.7)):
        up = flow(model, x, start, end, rtol=1e-8, atol=1e-8).x
        exact = data.flow_map(x, sde, start, end)
        torch.testing.assert_close(up, exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
        torch.testing.assert_close(flow(model, exact, end, start, rtol=1e-8, atol=1e-8).x, x, rtol=1e-6, atol=1e-6)


@every
def test_encode_then_sample_returns(name, device):
    sde, data = SDES[name], RingData(std=0.3).to(device)
    model = data.model(sde)
    x = data.sample(32)
    up = flow(model, x, sde.t_min, sde.t_max, rtol=1e-7, atol=1e-7)
    back = flow(model, up.x, sde.t_max, sde.t_min, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-5)


@every
def test_error_falls_with_the_tolerance(name):
    model = MIXTURE.model(SDES[name])
    x = prior_draws(model, 16)
    ends = (SDES[name].t_max, SDES[name].t_min)
    exact = flow(model, x, *ends, rtol=1e-9, atol=1e-9)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        out = flow(model, x, *ends, rtol=tolerance, atol=tolerance)
        errors.append(float((out.x - exact.x).abs().max()))
        calls.append(float(out.nfe.double().mean()))
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10
    assert calls[0] < calls[1] < calls[2] < 1000


@every
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_a_sample_in_a_batch_is_what_it_is_alone(name, dtype, tolerance, device):
    sde = SDES[name]
    model = MIXTURE.to(device).model(sde)
    x = prior_draws(model, 8, device)
    x[3] *= 4  # a neighbour with another scale and so other steps
    x = x.to(dtype)
    together = flow(model, x, sde.t_max, sde.t_min)
    for i in (0, 3, 7):
        alone = flow(model, x[i : i + 1], sde.t_max, sde.t_min)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=tolerance, atol=tolerance)
        if dtype == torch.float64:
            assert together.nfe[i] == alone.nfe[0]


def test_calls_are_counted_for_each_sample(device):
    sde, count = make_sde("vp"), 12
    network = CountingNetwork(MIXTURE.to(device).score(sde), count, device)
    model = ScoreModel(network, sde, prediction="score")
    for final in ("state", "denoise"):
        for hook in (None, lambda step, t, x: None):
            network.calls.zero_()
            x = prior_draws(model, count, device)
            x[0] *= 30
            cond = {"index": torch.arange(count)}
            out = sample(model, (count, 2), "ode", x_init=x, cond=cond, final=final, progress=False, step_hook=hook)
            assert torch.equal(out.nfe, network.calls)
            # Elsewhere than on the CPU samples that have arrived are put aside at every fourth attempt alone.
            assert hook is not None or device.type != "cpu" or len(out.nfe.unique()) > 1


@pytest.mark.parametrize("name, watched", [("vp", False), ("ve", False), ("vp", True)])
def test_the_step_cap_marks_its_samples_and_spares_the_others(name, watched, device):
    """One sample's field is rough, so that it alone needs many steps."""
    sde, bad = SDES[name], 2

    def model(device):
        plain = MIXTURE.to(device).score(sde)

        def network(x, c, index):
            wave = torch.sin(220 * torch.cos(1.2 * c))[:, None] / sde.marginal(c)[1][:, None]
            return plain(x, c) + torch.where((index == bad)[:, None], wave, 0.0)

        return ScoreModel(network, sde, prediction="score", prior="sde")

    x = prior_draws(model("cpu"), 5)
    options = {"cond": {"index": torch.arange(5)}, "progress": False, "dtype": torch.float64}
    options |= {"trajectory": "states"} if watched else {}
    free = sample(model("cpu"), (5, 2), "ode", x_init=x, **options)  # on the CPU, where a call is an attempt's and no other
    others = 3 + (len(free.times) if watched else 0)  # calls that are not a stage of a step
    attempts = (free.nfe - others) / 6
    spared = [0, 1, 3, 4]
    cap = int(attempts[spared].max()) + 1
    assert attempts[bad] > cap and not free.failed.any()
    masked = sample(model(device), (5, 2), "ode", x_init=x.to(device), steps=cap, on_failure="mask", **options)
    assert masked.failed.tolist() == [False, False, True, False, False]
    torch.testing.assert_close(masked.x.cpu()[spared], free.x[spared], rtol=1e-8, atol=1e-8)
    assert masked.nfe[bad] <= 6 * (cap + WATCHED) + others
    with pytest.raises(SolverError, match="step cap") as caught:
        sample(model(device), (5, 2), "ode", x_init=x.to(device), steps=cap, **options)
    assert caught.value.failed.tolist() == [bad] and caught.value.healthy.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("value, below", [(math.nan, 0.5), (math.nan, 1.0), (math.inf, 0.5), (-math.inf, 1.0), (1e300, 0.5)])
def test_a_field_that_breaks_ends_and_spares_the_others(value, below):
    sde = make_sde("vp")
    options = {"progress": False, "dtype": torch.float64, "cond": {"index": torch.arange(4)}, "on_failure": "mask"}
    good, out = (
        sample(ScoreModel(FailingNetwork(MIXTURE.score(sde), bad, below, value), sde, prediction="score"), (4, 2), "ode", **options)
        for bad in (-1, 1)
    )
    assert out.failed.tolist() == [False, True, False, False]
    assert torch.equal(out.x[[0, 2, 3]], good.x[[0, 2, 3]]) and (out.nfe < 1000).all()


def test_a_watched_run_reaches_the_same_place(device):
    sde = make_sde("subvp")
    model = MIXTURE.to(device).model(sde)
    x = prior_draws(model, 4, device)
    plain = flow(model, x, sde.t_max, sde.t_min, rtol=1e-8, atol=1e-8)
    watched = flow(model, x, sde.t_max, sde.t_min, rtol=1e-8, atol=1e-8, trajectory="states")
    torch.testing.assert_close(plain.x, watched.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(watched.trajectory[-1], watched.x.cpu())
    exact = flow(model, x, sde.t_max, float(watched.times[11]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(watched.trajectory[11], exact.x.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("data_std", [0.3, 4.0])
def test_any_scale_of_data(data_std):
    sde = make_sde("vp")
    data = GaussianData(torch.zeros(2), data_std**2 * torch.eye(2, dtype=torch.float64))
    model = ScoreModel(data.score(sde), sde, prediction="score", data_std=data_std, prior="matched")
    x = prior_draws(model, 5)
    out = flow(model, x, sde.t_max, sde.t_min)
    torch.testing.assert_close(out.x, data.flow_map(x, sde, sde.t_max, sde.t_min), rtol=1e-5, atol=1e-6)
    assert (out.nfe < 40).all()  # in the angle's units the flow of such data stands still
