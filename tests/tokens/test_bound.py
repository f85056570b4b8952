"""The bounds of exact posteriors: -log p(x) itself in continuous time, and the chain's known gap in T steps."""

import itertools
import math

import numpy as np
import pytest
import torch

from sde_gen.exact.markov import MarkovChain
from sde_gen.tokens import PROCESSES, ExactTokens, make_process, token_bound
from sde_gen.tokens.bound import missed, score_entropy, step_divergence


def law(length: int, symbols: int) -> MarkovChain:
    generator = torch.Generator().manual_seed(1)
    transition = torch.rand(symbols, symbols, generator=generator) ** 4 + 0.02
    return MarkovChain(torch.rand(symbols, generator=generator) + 0.1, transition, length)


def everything(states: int, length: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(states)] * length)


def probability(model, x, state, kept) -> torch.Tensor:
    """q(x_t = state | x_0 = x)."""
    return model.process.transition(kept)[torch.arange(len(x))[:, None], x, state].prod(1)


def test_masked_diffusion_with_exact_posteriors_gives_the_entropy():
    chain = law(6, 3)
    model, x = ExactTokens(chain, make_process("absorbing", 3)), chain.all()
    total = torch.zeros(len(x), dtype=torch.float64)
    for masked in everything(2, 6).bool()[1:]:
        k = int(masked.sum())
        total += missed(model, x, masked.expand(len(x), -1), {}) / (k * math.comb(6, k))
    torch.testing.assert_close(total, -chain.log_prob(x), atol=1e-10, rtol=0)
    assert float(chain.log_prob(x).exp() @ total) == pytest.approx(chain.entropy(), abs=1e-5)


@pytest.mark.parametrize("name", ["uniform", "gaussian", "absorbing"])
def test_the_score_entropy_of_exact_posteriors_gives_the_entropy(name):
    chain = law(2, 3)
    model = ExactTokens(chain, make_process(name, 3))
    states = everything(model.process.states, 2)
    x = chain.all().repeat_interleave(len(states), 0)
    state = states.repeat(len(chain.all()), 1)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    total = torch.zeros(len(chain.all()), dtype=torch.float64)
    for node, weight in zip(0.5 + nodes / 2, weights / 2, strict=True):
        u = node**4  # the integrand has a logarithm where all is kept
        kept = torch.full((len(x),), 1 - u, dtype=torch.float64)
        q = probability(model, x, state, kept)
        terms = torch.where(q > 0, q * score_entropy(model, x, state, kept, {}), 0.0) / kept
        total += weight * 4 * node**3 * terms.reshape(-1, len(states)).sum(1)
    expected = float(chain.log_prob(chain.all()).exp() @ total)
    assert expected == pytest.approx(chain.entropy(), abs=1e-5)


@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_the_gap_of_the_chain_falls_as_one_over_its_steps(name):
    chain = law(3, 3)
    model = ExactTokens(chain, make_process(name, 3))
    states = everything(model.process.states, 3)
    x = chain.all().repeat_interleave(len(states), 0)
    state = states.repeat(len(chain.all()), 1)
    gaps = []
    for steps in (1, 2, 4, 32, 64):
        total = torch.zeros(len(chain.all()), dtype=torch.float64)
        for step in range(steps):
            kept, more = (torch.full((len(x),), (step + k) / steps, dtype=torch.float64) for k in (0, 1))
            q = probability(model, x, state, kept)
            found = torch.where(q > 0, q * step_divergence(model, x, state, kept, more, {}), 0.0)
            total += found.reshape(-1, len(states)).sum(1)
        gaps.append(float(chain.log_prob(chain.all()).exp() @ total) - chain.entropy())
    x = chain.all()
    marginals = torch.stack([(chain.log_prob(x).exp()[:, None] * (x == symbol)).sum(0) for symbol in range(3)], 1)
    assert gaps[0] == pytest.approx(float(torch.special.entr(marginals).sum()) - chain.entropy(), abs=1e-10)  # the total correlation
    assert all(0 < after < before for before, after in itertools.pairwise(gaps))
    assert gaps[3] / gaps[4] == pytest.approx(2, rel=0.06)


@pytest.mark.parametrize(
    ("name", "options"), [("absorbing", {"draws": None}), ("uniform", {}), ("gaussian", {"steps": 8}), ("absorbing", {})]
)
def test_drawn_bounds_agree_with_the_likelihood_within_their_errors(name, options):
    chain = law(5, 4)
    model = ExactTokens(chain, make_process(name, 4))
    x = chain.sample(600, 2)
    found = token_bound(model, x, **options, batch_size=250)
    apart = found.nats + chain.log_prob(x)
    error = float(apart.std()) / math.sqrt(len(x))
    most = 4 * error + (0.6 if "steps" in options else 0.0)  # eight steps are a looser bound
    assert -4 * error < float(apart.mean()) < most
    assert found.value == pytest.approx(float(found.nats.mean()) / (5 * math.log(2)))
    assert found.nfe == (5 if options.get("draws", 0) is None else 16)
    if options.get("draws", 0) is not None:
        assert 0.8 < float(found.draw_error.square().mean().sqrt()) / float(apart.std()) < 2  # it does not know that levels were spread


def test_bad_items_get_one_line():
    model = ExactTokens(law(3, 3), make_process("absorbing", 3))
    with pytest.raises(TypeError, match=r"whole numbers in an integer tensor, got torch.float32"):
        token_bound(model, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"symbols must be 0 .. 2, got 0 .. 3"):
        token_bound(model, torch.tensor([[0, 3, 1]]))
    with pytest.raises(ValueError, match=r"shape \(N, 3\).*got \(2, 4\)"):
        token_bound(model, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="draws must be a whole number"):
        token_bound(ExactTokens(law(3, 3), make_process("uniform", 3)), torch.zeros(2, 3, dtype=torch.int64), draws=None)
    for steps in (0, 2.5, True):
        with pytest.raises(ValueError, match=r"steps must be a whole number of at least 1, or None, got"):
            token_bound(model, torch.zeros(2, 3, dtype=torch.int64), steps=steps)
    with pytest.raises(ValueError, match="this model takes no condition 'label'; it takes none"):
        token_bound(model, torch.zeros(2, 3, dtype=torch.int64), cond={"label": torch.zeros(2, dtype=torch.int64)})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("name", list(PROCESSES))
def test_symbols_of_any_integer_type_have_the_same_bound(name, dtype):
    model, x = ExactTokens(law(5, 4), make_process(name, 4)), law(5, 4).sample(20, 1)
    assert torch.equal(token_bound(model, x.to(dtype), 3).nats, token_bound(model, x, 3).nats)


def test_an_error_that_is_not_known_is_no_error_of_0():
    model, x = ExactTokens(law(5, 4), make_process("absorbing", 4)), law(5, 4).sample(3, 1)
    for draws in (None, 1):
        assert bool(token_bound(model, x, draws).draw_error.isnan().all())
        assert token_bound(model, x, draws).std_error > 0  # over items
        assert math.isnan(token_bound(model, x[:1], draws).std_error)
    one = token_bound(model, x[:1], 8)
    assert one.std_error == pytest.approx(float(one.draw_error) / (5 * math.log(2)))
    assert one.std_error > 0
