import pytest
import torch

from sde_gen.tokens import PROCESSES, make_process
from sde_gen.tokens.process import draw

NAMES = list(PROCESSES)


@pytest.mark.parametrize("name", NAMES)
def test_transitions_are_the_exponential_of_the_rates(name):
    process = make_process(name, 5)
    assert process.rates.sum(1).abs().max() < 1e-12
    decays = torch.linalg.eigvals(process.rates).real.sort(descending=True).values
    assert float(decays[1]) == pytest.approx(-1)  # so that `kept` means the same for all
    kept = torch.tensor([1.0, 0.9, 0.3, 0.01], dtype=torch.float64)
    direct = torch.linalg.matrix_exp(-kept.log()[:, None, None] * process.rates)
    torch.testing.assert_close(process.transition(kept), direct, atol=1e-12, rtol=0)
    torch.testing.assert_close(process.stationary() @ process.rates, torch.zeros(process.states).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_corrupted_symbols_have_the_law(name):
    process = make_process(name, 5)
    x = torch.tensor([[3]]).expand(40_000, 1)
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.bincount(process.corrupt(x, torch.full((len(x),), 0.4), uniform).flatten(), minlength=process.states) / len(x)
    expected = process.transition(torch.tensor(0.4))[3]
    assert float((found - expected).abs().max()) < 4 * 0.5 / 200


@pytest.mark.parametrize("name", NAMES)
def test_the_reverse_step_of_a_known_symbol_is_bayes(name):
    process, known = make_process(name, 4), 2
    kept, more = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    one = torch.nn.functional.one_hot(torch.tensor([[known]]), 4).double()
    for state in range(process.states):
        if float(process.likelihoods(torch.tensor([[state]]), kept)[0, 0, known]) == 0:
            continue
        joint = process.transition(more)[0, known] * process.transition(kept / more)[0, :, state]
        found = process.reverse(one, torch.tensor([[state]]), kept, more)[0, 0]
        torch.testing.assert_close(found, joint / joint.sum(), atol=1e-12, rtol=0)


def test_a_draw_never_gives_what_cannot_be_and_gives_the_rarest():
    law = torch.tensor([0.0, 1e-9, 0.0, 1.0, 0.0], dtype=torch.float64)
    uniform = torch.tensor([1e-300, 0.9e-9, 1.1e-9, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(law.expand(5, -1), uniform).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absorbing", 1), "symbols must be a whole number of at least 2, got 1"),
        (("absorbing", 2.0), "symbols must be a whole number of at least 2, got 2.0"),
        (("masked", 3), "unknown token process 'masked'; choose from absorbing, uniform, gaussian"),
    ],
)
def test_bad_processes(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_process(*arguments)
    with pytest.raises(ValueError, match="width must be positive and finite, got 0"):
        make_process("gaussian", 4, width=0)
    with pytest.raises(ValueError, match="never mix"):
        make_process("gaussian", 4, width=0.02)
