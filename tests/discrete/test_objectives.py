"""The discrete view's training losses against the continuous loss, the bound, and their definitions."""

import pytest
import torch
from torch import nn

from sde_gen import DiscreteChain, ScoreModel, dsm_loss, elbo, make_sde
from sde_gen.data import Normalizer
from sde_gen.discrete import OBJECTIVES, IndexSampler, chain_loss, chain_of
from sde_gen.discrete.objectives import HISTORY
from sde_gen.exact.mixtures import GaussianData

VP = make_sde("vp")
DATA = GaussianData(torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))


class TwoHeads(nn.Module):
    """A denoiser and a variance fraction, with a parameter for each."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = nn.Parameter(torch.tensor(0.6).double()), nn.Parameter(torch.tensor(-0.4).double())

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.mean * torch.tanh(x), self.spread + 0.1 * torch.tanh(x)], dim=1)


def two_heads(device: torch.device) -> ScoreModel:
    return ScoreModel(TwoHeads(), VP, prediction="data", variance="learned_range", normalizer=None).to(device)


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_simple_is_the_continuous_loss_at_the_chains_times(name, device):
    sde, data = make_sde(name), DATA.to(device)
    model, chain = data.model(sde), chain_of(sde, 40)
    i = torch.tensor([0, 7, 20, 39], device=device)
    x = data.sample(4)
    torch.testing.assert_close(
        chain_loss(model, x, chain, indices=i, seed=3), dsm_loss(model, x, "simple", chain.time(i), seed=3), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("whole_numbers", [False, True])
def test_the_mean_of_vlb_is_the_bound_without_its_end(learned, whole_numbers, device):
    chain = chain_of(VP, 25)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 5, (400, 2), generator=generator).to(device)
    levels = 5 if whole_numbers else None
    normalizer = Normalizer.fit(images.double(), "standard")
    network = TwoHeads() if learned else lambda x, c: 0.7 * torch.tanh(x)
    model = ScoreModel(network, VP, prediction="data", variance="learned_range" if learned else None, normalizer=normalizer)
    model = model.double().to(device)
    values = images if whole_numbers else images.double()
    found = elbo(
        model, values, chain, levels, variance="learned" if learned else "fixed_small", decoder="step" if learned else "noise", draws=4
    )
    wanted = found.decoder.value + found.diffusion.value
    x = normalizer.encode(images.double())
    unit = 1 / torch.log(torch.tensor(2.0)) if whole_numbers else torch.tensor(1.0)
    drawn = (
        torch.stack([chain_loss(model, x, chain, "vlb", torch.full((400,), i), levels, seed=i).detach() for i in range(25)]).mean(0) * unit
    )
    difference = abs(float(drawn.mean()) - wanted)
    assert difference < 4 * (found.noise**2 * 5) ** 0.5 + 1e-3 * abs(wanted), (float(drawn.mean()), wanted)


def test_hybrid_trains_the_mean_by_simple_and_the_variance_by_the_bound(device):
    model, chain = two_heads(device), chain_of(VP, 30)
    x, i = DATA.sample(64).to(device), torch.arange(64) % 30
    gradients = {}
    for objective in OBJECTIVES:
        model.zero_grad()
        chain_loss(model, x, chain, objective, i, seed=1).mean().backward()
        gradients[objective] = {
            name: p.grad.clone() if p.grad is not None else torch.zeros(()) for name, p in model.network.named_parameters()
        }
    torch.testing.assert_close(gradients["hybrid"]["mean"], gradients["simple"]["mean"])
    torch.testing.assert_close(gradients["hybrid"]["spread"], 1e-3 * gradients["vlb"]["spread"])
    assert float(gradients["simple"]["spread"].abs()) == 0 and float(gradients["vlb"]["spread"].abs()) > 0


def test_the_learned_variance_finds_the_best_between_the_two():
    """For Gaussian data with the exact mean the best variance of a step is E[posterior variance] + the data's remainder: the
    fraction that minimises the bound, found by training it, gives a lower bound than both fixed choices."""
    data = GaussianData(torch.zeros(1), torch.full((1, 1), 0.3))
    exact = data.model(VP)
    chain = chain_of(VP, 8)

    class Fraction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(8, dtype=torch.float64))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            i = chain.index(t)
            return torch.cat([exact.denoise(x, t), self.raw[i][:, None].expand_as(x)], dim=1)

    model = ScoreModel(Fraction(), VP, prediction="data", variance="learned_range")
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.9, 0.9))
    for step in range(150):
        x = data.sample(400, seed=step)
        loss = chain_loss(model, x, chain, "vlb", seed=10_000 + step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = data.sample(4000, seed=1000)
    bounds = {
        kind: elbo(model, held, chain, variance=kind, decoder="step" if kind == "learned" else "noise")
        for kind in ("learned", "fixed_small", "fixed_large")
    }
    learned = bounds["learned"].diffusion.value
    assert learned < min(bounds[kind].diffusion.value for kind in ("fixed_small", "fixed_large")) - 0.05
    # The best variance in closed form: Var(x_{i-1} | x_i) of the data themselves.
    for i in range(1, 8):
        of_data, _, small = (float(value) for value in chain.posterior_coefficients(i))
        alpha, sigma = (float(value) for value in chain.marginal(i))
        remainder = 0.3 * sigma**2 / (alpha**2 * 0.3 + sigma**2)
        best = small + of_data**2 * remainder
        fraction = 0.5 * (model.network.raw[i].detach() + 1)
        assert float(chain.variance(i, "learned", fraction)) == pytest.approx(best, rel=0.1)


def test_importance_sampling_of_indices_is_unbiased_and_less_noisy():
    steps = 20
    size = 10.0 ** (-torch.arange(steps, dtype=torch.float64) / 5)  # losses over four decades, as the bound's
    sampler = IndexSampler(steps, "importance")
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(sampler.probabilities(), torch.full((steps,), 1 / steps, dtype=torch.float64))
    for _ in range(HISTORY):
        sampler.update(torch.arange(steps), size * (1 + 0.1 * torch.rand(steps, generator=generator, dtype=torch.float64)))
    p = sampler.probabilities()
    torch.testing.assert_close(p, size / size.sum(), rtol=0.1, atol=1e-4)
    estimates = {}
    for kind, chosen in (("importance", sampler), ("uniform", IndexSampler(steps))):
        draws = [chosen.draw(4, generator) for _ in range(4000)]
        estimates[kind] = torch.stack([(size[i] * weight).mean() for i, weight in draws])
        error = estimates[kind].std() / len(draws) ** 0.5
        assert abs(float(estimates[kind].mean() - size.mean())) < 4 * float(error)
    assert float(estimates["importance"].std()) < 0.3 * float(estimates["uniform"].std())
    again = IndexSampler(steps, "importance")
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.probabilities(), p)
    sampler.update(torch.tensor([0, 0]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(sampler.probabilities(), p)


def test_uniform_indices_cover_the_chain_evenly():
    i, weight = IndexSampler(50).draw(100, torch.Generator().manual_seed(0))
    assert torch.bincount(i, minlength=50).tolist() == [2] * 50 and torch.equal(weight, torch.ones_like(weight))


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda m, x, c: chain_loss(m, x, c, "simpel"), "unknown objective 'simpel'; choose from simple, vlb, hybrid"),
        (lambda m, x, c: chain_loss(m, x, c, "hybrid"), "needs a model with variance='learned_range'"),
        (lambda m, x, c: chain_loss(m, x, c, seed=1, generator=torch.Generator()), "seed or generator, not both"),
        (lambda m, x, c: IndexSampler(3, "even"), "unknown index sampler 'even'; choose from uniform, importance"),
        (lambda m, x, c: chain_loss(m, x, c, indices=torch.tensor([0, 99])), r"indices must be in"),
    ],
)
def test_bad_arguments(call, match):
    with pytest.raises(ValueError, match=match) as caught:
        call(DATA.model(VP), DATA.sample(2), DiscreteChain.from_sde(VP, 10))
    assert "\n" not in str(caught.value)
