import math

import pytest
import torch

from sde_gen.exact.markov import MarkovChain


def chain() -> MarkovChain:
    generator = torch.Generator().manual_seed(1)
    return MarkovChain(torch.rand(3, generator=generator) + 0.1, torch.rand(3, 3, generator=generator) ** 4 + 0.02, 4)


def test_the_probabilities_of_all_sequences_sum_to_one_and_give_the_entropy():
    law = chain()
    log_prob = law.log_prob(law.all())
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert law.entropy() == pytest.approx(-float((log_prob.exp() * log_prob).sum()), abs=1e-12)


def test_posteriors_are_those_of_the_sum_over_all_sequences():
    law = chain()
    evidence = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    evidence[0, 1] = torch.tensor([0.0, 1.0, 0.0])  # one entry is known
    x = law.all()
    joint = law.log_prob(x).exp() * evidence[:, torch.arange(4), x].prod(2)
    direct = torch.stack([(joint[:, None] * (symbol == x.T)).sum(2) for symbol in range(3)], 2) / joint.sum(1)[:, None, None]
    torch.testing.assert_close(law.posterior(evidence), direct, atol=1e-12, rtol=0)


def test_draws_have_the_law():
    law = chain()
    x = law.sample(20_000, seed=3)
    found = torch.bincount(x @ 3 ** torch.arange(3, -1, -1), minlength=81) / len(x)
    expected = law.log_prob(law.all()).exp()
    assert float(((found - expected).abs() / (expected / len(x)).sqrt()).max()) < 4.5
    assert float(-law.log_prob(x).mean()) == pytest.approx(law.entropy(), abs=4 * float(law.log_prob(x).std()) / math.sqrt(len(x)))
