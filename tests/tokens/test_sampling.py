"""The law of every sampler against that of a chain whose posteriors are exact."""

import pytest
import torch
from scipy import stats

from sde_gen.exact.markov import MarkovChain
from sde_gen.tokens import PROCESSES, SAMPLERS, ExactTokens, make_process, sample_tokens

CHAIN = MarkovChain(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.45, 0.5, 0.05]]), 5)
MASKS = ("first_hitting", "confidence")
PAIRS = [(name, sampler) for name in PROCESSES for sampler in SAMPLERS if name == "absorbing" or sampler not in MASKS]


def p_value(x: torch.Tensor, expected: torch.Tensor) -> float:
    counts = torch.bincount(x @ 3 ** torch.arange(4, -1, -1), minlength=243).double()
    often = expected * len(x) > 5
    seen = torch.cat((counts[often], counts[~often].sum()[None]))
    wanted = torch.cat((expected[often], expected[~often].sum()[None])) * len(x)
    assert not bool((counts[expected == 0] > 0).any())
    return float(stats.chisquare(seen.numpy(), wanted.numpy()).pvalue)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_each_sampler_has_the_law_of_the_chain(name, sampler):
    model = ExactTokens(CHAIN, make_process(name, 3))
    expected = CHAIN.log_prob(CHAIN.all()).exp()
    steps = 5 if sampler in MASKS else 50  # revealed one by one they are exact; the others err as 1/steps
    out = sample_tokens(model, 2000, sampler, steps=steps, seed=1)
    assert p_value(out.x, expected) > 1e-3
    assert bool((out.nfe == steps).all())
    assert p_value(sample_tokens(model, 4000, sampler, steps=2, seed=1).x, expected) < 1e-6  # and the test sees what few steps do


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_what_is_given_stays_and_the_rest_is_the_conditional_law(sampler):
    model = ExactTokens(CHAIN, make_process("absorbing", 3))
    given = torch.tensor([-1, 2, -1, -1, 0]).expand(2000, -1)
    out = sample_tokens(model, 2000, sampler, steps=3 if sampler in MASKS else 50, seed=2, given=given)
    assert bool((out.x[:, [1, 4]] == torch.tensor([2, 0])).all())
    every = CHAIN.all()
    fits = (every[:, 1] == 2) & (every[:, 4] == 0)
    expected = torch.where(fits, CHAIN.log_prob(every).exp(), 0.0)
    assert p_value(out.x, expected / expected.sum()) > 1e-3
    known = torch.tensor([0, 2, 1, 1, 0]).expand(3, -1)
    assert torch.equal(sample_tokens(model, 3, sampler, given=known).x, known)


@pytest.mark.parametrize(("name", "sampler"), PAIRS)
def test_a_sample_does_not_depend_on_its_batch(name, sampler):
    model = ExactTokens(CHAIN, make_process(name, 3))
    given = None
    if name == "absorbing":  # with other numbers of masks in each
        given = torch.where(torch.rand(9, 5, generator=torch.Generator().manual_seed(0)) < 0.5, -1, 1)
    whole = sample_tokens(model, 9, sampler, steps=4, seed=3, given=given).x
    assert torch.equal(whole, sample_tokens(model, 9, sampler, steps=4, seed=3, given=given, batch_size=2).x)
    part = None if given is None else given[4:7]
    assert torch.equal(whole[4:7], sample_tokens(model, 3, sampler, steps=4, seed=3, given=part, index_offset=4).x)


def test_bad_arguments_get_one_line():
    model, other = (ExactTokens(CHAIN, make_process(name, 3)) for name in ("absorbing", "uniform"))
    for arguments, message in (
        ((model, 2, "gibbs"), "unknown token sampler 'gibbs'; choose from ancestral"),
        ((model, 0), "count must be a whole number of at least 1, got 0"),
        ((other, 2, "confidence"), "sampler 'confidence' is for a process whose masks"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_tokens(*arguments)
    with pytest.raises(ValueError, match="given symbols are for"):
        sample_tokens(other, 2, given=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"given must be whole numbers of shape \(2, 5\)"):
        sample_tokens(model, 2, given=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"given must be whole numbers .* got torch.bool"):
        sample_tokens(model, 2, given=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="given must be a tensor of whole numbers, got list"):
        sample_tokens(model, 2, given=[[0] * 5] * 2)
    with pytest.raises(ValueError, match="this model takes no condition 'label'"):
        sample_tokens(model, 2, cond={"label": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"-1 or symbols 0 .. 2, got 0 .. 3"):
        sample_tokens(model, 2, given=torch.full((2, 5), 3) * torch.tensor([0, 1, 1, 1, 1]))


def test_a_model_that_gives_nan_is_not_taken_for_symbol_0():
    class Broken(ExactTokens):
        def predict(self, x, kept, **cond):
            found = super().predict(x, kept, **cond)
            return torch.where(x[..., None] == 3, torch.nan, found)

    model = Broken(CHAIN, make_process("absorbing", 3))
    given = torch.zeros(3, 5, dtype=torch.int64)
    given[2, 1] = -1
    with pytest.raises(RuntimeError, match="NaN for 1 samples: 2"):
        sample_tokens(model, 3, given=given, steps=2)
