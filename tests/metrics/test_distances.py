import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from sde_gen.metrics import frechet_distance, kernel_distance, sliced_wasserstein


def normal(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def with_moments(x, mean, covariance):
    """The same points, mapped so that their sample moments are exactly these."""
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (len(x) - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def spread(metric, n, m, d, shift, draws):
    """(true spread of the value over fresh draws, root mean square of its standard errors, mean value)"""
    found = [metric(normal(n, d, 2 * i, shift), normal(m, d, 2 * i + 1), i) for i in range(draws)]
    values, errors = (torch.tensor([getattr(e, key) for e in found], dtype=torch.float64) for key in ("value", "std_error"))
    return float(values.std()), float(errors.square().mean().sqrt()), float(values.mean())


def test_frechet_of_known_moments():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root_a, root_b = normal(3, 3, 5), normal(3, 3, 6)
    cov_a, cov_b = root_a @ root_a.T + torch.eye(3), root_b @ root_b.T + torch.eye(3)
    a, b = with_moments(normal(50, 3, 0), mean, cov_a), with_moments(normal(70, 3, 1), torch.zeros(3, dtype=torch.float64), cov_b)
    cross = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    expected = float(mean.square().sum() + cov_a.trace() + cov_b.trace()) - 2 * np.trace(cross)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a).value == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(a, a).value == pytest.approx(0, abs=1e-10)
    commuting = frechet_distance(with_moments(a, mean, 4 * torch.eye(3).double()), with_moments(b, 0 * mean, 9 * torch.eye(3).double()))
    assert commuting.value == pytest.approx(5.25 + 3, rel=1e-10)  # |mu|^2 + sum (2 - 3)^2


def test_frechet_survives_a_singular_covariance():
    a, b = normal(40, 3, 0), normal(40, 3, 1)
    a[:, 2] = b[:, 2] = a[:, 0]
    assert math.isfinite(frechet_distance(a, b).value) and frechet_distance(a[:5].repeat(1, 20), b[:5].repeat(1, 20)).value >= 0


def test_kernel_distance_equals_its_definition():
    a, b = normal(20, 3, 0, 0.5), normal(31, 3, 1)
    kernel = [((x @ y.T) / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    expected = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel[:2]) - 2 * kernel[2].mean()
    assert kernel_distance(a, b).value == pytest.approx(float(expected), rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_without_bias():
    found = [kernel_distance(normal(150, 4, 2 * i), normal(100, 4, 2 * i + 1)) for i in range(100)]
    assert np.mean([abs(e.value) < 3 * e.std_error for e in found]) > 0.97
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert kernel_distance(normal(150, 4, 0, 1.0), normal(100, 4, 1)).value > 5 * found[0].std_error


@pytest.mark.parametrize("counts", [(2000, 2000), (2000, 1501)])
def test_sliced_wasserstein_of_shifted_gaussians(counts):
    shift = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    found = sliced_wasserstein(normal(counts[0], 4, 0, shift), normal(counts[1], 4, 1))
    assert abs(found.value - 5 / math.sqrt(4)) < 4 * found.std_error < 0.2  # E (u.shift)^2 = |shift|^2/D


def test_sliced_wasserstein_of_scaled_gaussians():
    found = sliced_wasserstein(3 * normal(4000, 2, 0), normal(4000, 2, 1))
    assert abs(found.value - 2) < 4 * found.std_error < 0.2


@pytest.mark.parametrize("counts", [(8, 8), (12, 8), (7, 30)])
def test_sliced_wasserstein_is_exact_in_one_dimension(counts):
    a, b = normal(counts[0], 1, 0), normal(counts[1], 1, 1, 0.3)
    repeated_a, repeated_b = a[:, 0].repeat_interleave(counts[1]).sort().values, b[:, 0].repeat_interleave(counts[0]).sort().values
    expected = math.sqrt(float((repeated_a - repeated_b).square().mean()))
    assert sliced_wasserstein(a, b).value == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(a, a).value == 0


def clusters(n, seed, share, centres):
    """Two round clusters of std 1 on the first axis, the first with this share."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(n, generator=generator) < share
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x[:, 0] += torch.where(first, *(torch.tensor(c, dtype=torch.float64) for c in centres))
    return x


@pytest.mark.parametrize(
    ("metric", "n", "draws", "shares", "centres", "least"),
    [
        ("frechet", 120, 150, (0.6, 0.5), (-5.0, 5.0), 0.93),  # 0.83 with the two variances added and no more
        ("kernel", 200, 300, (0.6, 0.5), (-5.0, 5.0), 0.93),  # 0.78
        ("kernel", 200, 300, (0.02, 0.05), (10.0, 0.0), 0.93),  # 0.80
        ("kernel", 200, 300, (0.8, 0.5), (-5.0, 5.0), 0.94),  # 0.92
    ],
)
def test_the_error_covers_where_one_direction_decides(metric, n, draws, shares, centres, least):
    """Shares of value +- 1.96 std_error that hold the mean over fresh draws; squares of few directions are skewed."""
    found = [METRICS[metric](clusters(n, 2 * i, shares[0], centres), clusters(n, 2 * i + 1, shares[1], centres), i) for i in range(draws)]
    values, errors = (np.array([getattr(e, key) for e in found]) for key in ("value", "std_error"))
    assert np.mean(np.abs(values - values.mean()) < 1.96 * errors) > least
    assert np.sqrt(np.mean(errors**2)) < 1.9 * values.std()


def test_kernel_distance_is_not_widened_in_many_directions():
    a, b = normal(300, 40, 0, 0.1), normal(200, 40, 1)
    n, m = len(a), len(b)
    joint = torch.cat([a, b])
    kernel = (joint @ joint.T / 40 + 1) ** 3
    aa, bb, ab = kernel[:n, :n].clone(), kernel[n:, n:].clone(), kernel[:n, n:]
    aa.fill_diagonal_(0), bb.fill_diagonal_(0)
    witness_a, witness_b = aa.sum(1) / (n - 1) - ab.mean(1), bb.sum(1) / (m - 1) - ab.mean(0)
    linear = 4 * float(witness_a.var()) / n + 4 * float(witness_b.var()) / m  # the noise of the witness left in: an upper bound
    assert kernel_distance(a, b).std_error < 1.15 * math.sqrt(linear)


def few_directions(a, b, **settings):
    return sliced_wasserstein(a, b, projections=16, **settings)


@pytest.mark.parametrize("metric", [frechet_distance, few_directions])
def test_equal_sizes_make_distances_comparable(metric):
    """Few and many draws of one law against one reference: alike at one size, and not where each has its own."""
    reference = normal(1000, 8, 0)
    few = [metric(normal(100, 8, 10 + i), reference, bootstrap=2) for i in range(10)]
    many = [metric(normal(800, 8, 50 + i), reference, bootstrap=2, size=100) for i in range(3)]
    own = [metric(normal(800, 8, 50 + i), reference, bootstrap=2) for i in range(3)]
    means = [float(np.mean([e.value for e in found])) for found in (few, many, own)]
    assert means[1] == pytest.approx(means[0], rel=0.08) and means[2] < 0.7 * means[0]


@pytest.mark.parametrize("metric", [frechet_distance, few_directions])
def test_the_error_at_a_size_is_the_spread_over_fresh_draws(metric):
    found = [metric(normal(240, 3, 2 * i, 0.7), normal(120, 3, 2 * i + 1), bootstrap=8, seed=i, size=60) for i in range(60)]
    values, errors = (np.array([getattr(e, key) for e in found]) for key in ("value", "std_error"))
    assert 0.75 < np.sqrt(np.mean(errors**2)) / values.std() < 1.35
    single = [metric(normal(60, 3, 2 * i, 0.7), normal(120, 3, 2 * i + 1), bootstrap=8, seed=i).std_error for i in range(20)]
    assert np.mean(errors) < 0.9 * np.mean(single)  # four parts know more than one


def test_one_part_of_everything_is_no_part():
    a, b = normal(60, 3, 0, 0.2), normal(40, 3, 1)
    for metric in (frechet_distance, sliced_wasserstein):
        assert metric(a, b, size=60).value == pytest.approx(metric(a, b).value, rel=1e-12)
        for size, message in ((3, "size 3; an integer >= 4"), (61, "size 61; a has 60 items only"), (4.5, "size 4.5; an integer")):
            with pytest.raises(ValueError, match=message):
                metric(a, b, size=size)


def test_sliced_wasserstein_in_units_of_its_columns():
    a, b = normal(300, 3, 0, 0.5), normal(200, 3, 1)
    units = torch.tensor([1e-3, 1.0, 2e4], dtype=torch.float64)
    plain = sliced_wasserstein(a, b)
    assert sliced_wasserstein(a * units, b * units, scale=units).value == pytest.approx(plain.value, rel=1e-9)
    assert sliced_wasserstein(a * units, b * units).value > 100 * plain.value  # the third column decides alone
    by_reference = sliced_wasserstein(a * units, b * units, scale="reference")
    assert by_reference.value == pytest.approx(sliced_wasserstein(a / b.std(0), b / b.std(0)).value, rel=1e-9)
    constant = torch.cat([b, torch.zeros(200, 1)], dim=1)
    assert math.isfinite(sliced_wasserstein(constant, constant + 1, scale="reference").value)
    for scale, message in (
        ("std", "unknown scale 'std'"),
        (units[:2], r"scale of shape \(2,\); 3 finite"),
        (0 * units, "3 finite positive"),
    ):
        with pytest.raises(ValueError, match=message):
            sliced_wasserstein(a, b, scale=scale)


METRICS = {
    "frechet": lambda a, b, seed: frechet_distance(a, b, bootstrap=30, seed=seed),
    "kernel": lambda a, b, seed: kernel_distance(a, b),
    "sliced": lambda a, b, seed: sliced_wasserstein(a, b, projections=16, bootstrap=20, seed=seed),
}


@pytest.mark.parametrize("name", METRICS)
def test_the_standard_error_is_the_spread_over_fresh_draws(name):
    true, stated, _ = spread(METRICS[name], 160, 200, 2, 0.7, draws=80)
    assert stated / true == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("name", "widest"), [("frechet", 1.3), ("kernel", 1.3), ("sliced", 1.6)])
def test_the_standard_error_holds_at_zero_distance(name, widest):
    # Where the ordinary bootstrap is sqrt(3) = 1.73 times too wide; a few dominating directions leave it somewhat wide here.
    true, stated, _ = spread(METRICS[name], 160, 200, 6, 0.0, draws=80)
    assert 0.8 < stated / true < widest


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, sliced_wasserstein])
def test_bad_input_is_refused_and_seeds_repeat(metric):
    a, b = normal(30, 3, 0), normal(20, 3, 1)
    assert metric(a, b) == metric(a, b)
    for bad, message in ((b[:3], "N >= 4"), (b[:, :2], "3 values an item and b 2"), (b / 0, "NaN or infinite")):
        with pytest.raises(ValueError, match=message):
            metric(a, bad)
    if metric is not kernel_distance:
        with pytest.raises(ValueError, match="bootstrap 1"):
            metric(a, b, bootstrap=1)
