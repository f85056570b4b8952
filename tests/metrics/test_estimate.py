import math

import pytest
import torch

from sde_gen.metrics import Estimate
from sde_gen.metrics.estimate import half_sample_error, half_samples, matrix, parts_of, skewed_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.3123, 0.0512, "2.31 +- 0.05"),
        (2.3123, 0.0149, "2.312 +- 0.015"),
        (12.34, 0.196, "12.3 +- 0.2"),
        (0.0, 0.3, "0.0 +- 0.3"),
        (1234.5, 56.0, "1234 +- 56"),
        (-0.00012, 0.00034, "-0.0001 +- 0.0003"),
        (1.0, 0.0, "1 +- 0"),
        (math.nan, 1.0, "nan +- 1"),
        (1.25e-9, 3e-10, "1.25e-09 +- 3e-10"),
    ],
)
def test_text(value, error, text):
    assert str(Estimate(value, error)) == text


def test_halves_are_disjoint_and_follow_the_seed():
    for (a, b), (other_a, other_b) in half_samples(11, 6, 4, seed=1):
        assert sorted([*a.tolist(), *other_a.tolist()]) == sorted(set(a.tolist()) | set(other_a.tolist())) and len(a) == len(other_a) == 5
        assert sorted([*b.tolist(), *other_b.tolist()]) == list(range(6))
    first, again, other = (torch.cat([p[0][0] for p in half_samples(50, 50, 3, seed)]) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_half_sample_error_of_a_mean_is_the_textbook_one():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.tensor([[float(x[i[0]].mean()), float(x[j[0]].mean())] for i, j in half_samples(400, 400, 1000, 0)], dtype=torch.float64)
    assert half_sample_error(pairs) == pytest.approx(float(x.std()) / 20, rel=0.1)


@pytest.mark.parametrize("delta", [1.0, 2.0, 3.0, 6.0])
def test_the_skewed_error_of_one_squared_normal_covers(delta):
    d = delta + torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = delta**2 + 1  # of d^2, whose linear part 2 delta (d - delta) has variance 4 delta^2, estimated by 4 (d^2 - 1)
    linear = (4 * (d**2 - 1)).clamp(min=0).tolist()
    found = torch.tensor([skewed_error(part, 2.0, 1.0) for part in linear], dtype=torch.float64)
    plain = torch.tensor([(part + 2.0) ** 0.5 for part in linear], dtype=torch.float64)
    covered, before = (float(((d**2 - mean).abs() < 1.96 * error).double().mean()) for error in (found, plain))
    assert covered > 0.92 and covered > before
    assert skewed_error(4.0, 2.0, 100.0) == pytest.approx(6**0.5, rel=0.01)  # many directions: normal, and nothing to widen
    assert skewed_error(4.0, 0.0, 0.0) == 2.0


def test_parts_are_disjoint_and_of_one_size():
    parts = parts_of("a", 103, 10, seed=2, most=20)
    assert [len(part) for part in parts] == [10] * 10 and len(torch.cat(parts).unique()) == 100
    assert len(parts_of("a", 103, 10, seed=2, most=3)) == 3
    assert torch.equal(parts_of("a", 7, None, seed=0)[0], torch.arange(7))


def test_what_is_no_matrix_is_refused():
    assert matrix("x", torch.zeros(3, 2, 2, dtype=torch.float16)).shape == (3, 4)
    infinite = torch.tensor([[1.0], [math.inf]])
    for bad, message in ((torch.zeros(3), r"x of shape \(3,\)"), (torch.zeros(1, 2), "N >= 2"), (infinite, "1 NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            matrix("x", bad)
