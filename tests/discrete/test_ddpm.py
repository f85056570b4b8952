"""A chain as a model's process: DDPM's own arithmetic, by index, against the continuous entry point."""

import warnings

import pytest
import torch
from torch import nn

from sde_gen import ScoreModel, make_chain, make_sde, sample
from sde_gen.discrete import ChainView, chain_of
from sde_gen.exact.mixtures import GaussianData
from sde_gen.randomness import NoiseStream
from sde_gen.sdes import BETAS

DATA = GaussianData(torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))


def network(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
    """Any function of state and index; the index must arrive as 0 .. N - 1."""
    return torch.tanh(x + 0.01 * i[:, None]) + 0.1 * x


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_the_index_and_the_continuous_entry_point_agree(betas, dtype, tolerance, device):
    """Ho et al.'s own lines, from betas and the index alone, against `ScoreModel` at the time of the index, at every grid point."""
    steps = 60
    beta = BETAS[betas](steps).to(device)
    abar = torch.cumprod(1 - beta, 0)
    sde = make_sde("ddpm", betas=betas, steps=steps)
    model = ScoreModel(network, sde, prediction="noise", clock="index")
    chain = chain_of(sde)
    view = ChainView(model, chain)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    for i in range(steps):
        eps = network(x, torch.full((4,), float(i), dtype=torch.float64, device=device))
        x_0 = (x - torch.sqrt(1 - abar[i]) * eps) / torch.sqrt(abar[i])
        mean = (x - beta[i] / torch.sqrt(1 - abar[i]) * eps) / torch.sqrt(1 - beta[i])
        scale = float(x_0.abs().max())
        state, t = x.to(dtype), float(chain.time(i))
        for got in (model.noise(state, t), view.noise(state, i), view.noise(state, torch.full((4,), i))):
            # The state's last bit is that of the noise over sigma: float32 cannot know the noise better.
            torch.testing.assert_close(got.double(), eps, rtol=tolerance, atol=tolerance / float(chain.sigma[i]))
        for got in (model.denoise(state, t), view.denoise(state, i)):
            torch.testing.assert_close(got.double(), x_0, rtol=tolerance, atol=tolerance * max(1.0, scale))
        torch.testing.assert_close(view.score(state, i), model.score(state, t), rtol=0, atol=0)
        if i:
            torch.testing.assert_close(view.reverse(state, i)[0].double(), mean, rtol=10 * tolerance, atol=10 * tolerance * max(1.0, scale))


def test_posterior_mean_prediction_is_the_posterior_mean(device):
    sde = make_sde("ddpm", steps=50)
    chain = chain_of(sde)
    exact = DATA.to(device).model(sde)

    def mean_network(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return ChainView(exact, chain).reverse(x, i.round().long())[0]

    model = ScoreModel(mean_network, sde, prediction="posterior_mean", clock="index")
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    for i in (0, 1, 20, 49):
        t = float(chain.time(i))
        torch.testing.assert_close(model.denoise(x, t), exact.denoise(x, t), rtol=1e-8, atol=1e-8)
    between = model.scales(torch.tensor([0.5 * float(chain.time(3) + chain.time(4))], dtype=torch.float64))
    ends = model.scales(chain.time(torch.tensor([3, 4])))
    assert float(ends.skip.max()) > float(between.skip) > float(ends.skip.min())


@pytest.mark.parametrize("clock, prediction", [("index", "noise"), ("time", "posterior_mean")])
def test_what_needs_a_chain_says_so(clock, prediction):
    model = ScoreModel(lambda x, c: x, make_sde("vp"), prediction=prediction, clock=clock)
    with pytest.raises(ValueError, match="needs an SDE that is a chain, as make_sde"):
        model.denoise(torch.zeros(2, 2), 0.5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_views_steps_are_the_ancestral_solver(variance, device):
    """The same chain walked by index with the same noise, the final denoising being the step at index 0."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x + 0.1 * c[:, None])
            return torch.cat([y, 2 * torch.sigmoid(x) - 1], 1) if variance == "learned" else y

    sde = make_sde("vp")
    model = ScoreModel(Net(), sde, clock="half_log_snr", variance="learned_range" if variance == "learned" else None)
    chain = chain_of(sde, 12)
    view = ChainView(model, chain)
    common = {"seed": 4, "dtype": torch.float64, "variance": variance, "device": device}
    out = sample(model, (3, 2), "ancestral", grid=chain.times.flip(0), **common)
    assert out.nfe.tolist() == [12] * 3
    noise = NoiseStream(4, 0, 3, (2,), torch.float64, device)
    state = model.prior.from_noise(noise.draw())
    for i in range(11, 0, -1):
        state = view.step(state, i, noise.draw(), variance)
    torch.testing.assert_close(view.step(state, 0, torch.ones_like(state), variance), out.x, rtol=1e-9, atol=1e-9)


def test_a_learned_variance_needs_a_model_that_has_one():
    model = DATA.model(make_sde("vp"))
    with pytest.raises(ValueError, match="learned_range"):
        sample(model, (2, 2), "ancestral", steps=3, variance="learned", dtype=torch.float64)


def test_the_chain_of_an_sde():
    assert len(chain_of(make_sde("vp"))) == 1000 and len(chain_of(make_sde("vp"), 30)) == 30
    own = make_sde("ddpm", steps=40)
    assert torch.equal(chain_of(own).times, own.points.times) and torch.equal(chain_of(own, 40).sigma, own.points.sigma)
    with pytest.raises(ValueError, match=r"a chain of 40 steps, got 50"):
        chain_of(own, 50)
    torch.testing.assert_close(
        make_sde("ddpm", betas="constant", steps=9, beta=0.3).points.alpha, make_chain("constant", 9, beta=0.3).alpha
    )


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"betas": "linnear"}, "unknown betas 'linnear'"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 1}, "at least 2 steps"),
        ({"beta": 0.1}, "has no setting beta; it takes"),
        ({"beta_start": -0.1}, "beta_start must be positive"),
        ({"beta_end": 1.5}, r"in \(0, 1\)"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match) as caught:
        make_sde("ddpm", **settings)
    assert "\n" not in str(caught.value)


def test_betas_of_a_thousand_steps_say_so_where_steps_are_fewer():
    with pytest.warns(UserWarning, match=r"betas 'linear' are DDPM's for 1,000 steps: after 100 a share of 0.6 of the data is left"):
        make_chain("linear", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_chain("linear", 1000)
        make_chain("linear", 100, beta_start=1e-3, beta_end=0.2)
        make_chain("cosine", 50)
