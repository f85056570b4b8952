"""Tests of calibration against posteriors that are known: right ones pass as often as they should, wrong ones do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sde_gen.diagnostics.calibration import crps, energy_score, judge
from sde_gen.diagnostics.ranks import PROJECTIONS, nearest_radii, projections, randomised_ranks, reference_distances
from sde_gen.diagnostics.uniformity import LEVELS, coverage, ks_p_value, uniformity

SHAPE = (2, 3)
"""Of an item: not a vector, so that shapes count."""
OPERATOR = torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
NOISE = 0.5


def gaussian_problems(
    count: int, size: int, seed: int, stretch: float = 1.0, shift: float = 0.0, prior: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Truths ~ N(0, I), samples of the exact posterior given y = A x + noise, and references A^T y. stretch: of the samples about their
    mean; shift: in standard deviations; prior: samples that know nothing of y."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=g, dtype=torch.float64)
    y = x @ OPERATOR.T + NOISE * torch.randn(count, 3, generator=g, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(6, dtype=torch.float64) + OPERATOR.T @ OPERATOR / NOISE**2)
    mean = y @ OPERATOR @ covariance / NOISE**2
    z = torch.randn(count, size, 6, generator=g, dtype=torch.float64)
    s = z if prior else mean[:, None] + shift * covariance.diagonal().sqrt() + stretch * z @ torch.linalg.cholesky(covariance).T
    return x.reshape(count, *SHAPE), s.reshape(count, size, *SHAPE), (y @ OPERATOR / 6).reshape(count, *SHAPE)


def test_exact_posteriors_pass_as_often_as_they_should() -> None:
    problems = [gaussian_problems(60, 15, seed) for seed in range(200)]
    found = [judge(x, s, references=references, seed=seed) for seed, (x, s, references) in enumerate(problems)]
    for name in ("region_p", "tarp_p"):  # exact p-values are uniform
        p = np.array([getattr(one, name) for one in found])
        assert stats.kstest(p, "uniform").pvalue > 0.01, name
    each = torch.stack([one.sbc.each for one in found])
    assert 0.03 < float((each < 0.05).double().mean()) < 0.07
    assert np.mean([one.p_value < 0.05 for one in found]) < 0.08  # by Bonferroni at most 0.05
    for name in ("entries", "directions", "regions"):
        parts = [getattr(one, name) for one in found]
        value = torch.stack([part.value for part in parts])
        error = value.std(0) / math.sqrt(len(parts))
        assert bool(((value.mean(0) - torch.tensor(LEVELS)).abs() < 4 * error).all()), name
        assert float(torch.stack([part.inside for part in parts]).double().mean()) > 0.93, name
        # problems are what is independent: the stated error is the spread over repetitions
        assert bool(((torch.stack([part.std_error for part in parts]).mean(0) / value.std(0) - 1).abs() < 0.2).all()), name
    # one quantity's share lies outside its binomial band as often as the binomial says
    outside = torch.stack([(part.entries.each < part.entries.band[:, 0]) | (part.entries.each > part.entries.band[:, 1]) for part in found])
    low, high = (found[0].entries.band[:, k].numpy() * 60 for k in (0, 1))
    expected = stats.binom.cdf(np.rint(low) - 1, 60, LEVELS) + stats.binom.sf(np.rint(high), 60, LEVELS)
    assert np.allclose(outside.double().mean((0, 1)).numpy(), expected, atol=0.012) and (expected <= 0.05).all()


@pytest.mark.parametrize("wrong", [{"stretch": 1.5}, {"stretch": 0.65}, {"shift": 0.6}, {"prior": True}])
def test_wrong_posteriors_fail(wrong: dict[str, float]) -> None:
    x, s, references = gaussian_problems(200, 30, 1, **wrong)
    found, right = judge(x, s, references=references), judge(*gaussian_problems(200, 30, 1)[:2])
    assert right.calibrated and bool(right.entries.inside.all() & right.directions.inside.all() & right.regions.inside.all())
    if "prior" in wrong:  # is calibrated, and only a reference that depends on y tells: ranks, coverage and a blind reference do not
        assert found.sbc.p_value > 0.05 and found.region_p > 0.05 and found.tarp_p < 1e-6 and not found.calibrated
        assert judge(x, s, references=torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).calibrated
        assert found.energy.value > right.energy.value + 5 * right.energy.std_error, "less sharp"
        return
    assert found.sbc.p_value < 1e-3 and found.p_value < 1e-3 and not found.calibrated
    assert not bool(found.regions.inside.all()) and found.energy.value > right.energy.value
    if "stretch" in wrong:
        side = 1 if wrong["stretch"] > 1 else -1
        for part in (found.entries, found.directions, found.regions):
            assert side * (float(part.value[0]) - 0.5) > 0.1 and not bool(part.inside[0])


def test_ranks_are_uniform_to_the_number_of_samples() -> None:
    """Exact for a single sample too, and with ties, where a plain r/L is far off."""
    g = torch.Generator().manual_seed(0)
    for size in (1, 3):
        values = torch.randn(20_000, size + 1, 1, generator=g, dtype=torch.float64)
        assert ks_p_value(randomised_ranks(values[:, 0], values[:, 1:])) > 0.01
        assert ks_p_value(randomised_ranks(values[:, 0].round(), values[:, 1:].round())) > 0.01
    u = randomised_ranks(torch.tensor([[0.5], [0.5]]), torch.tensor([[[0.0], [1.0], [2.0]]] * 2), seed=3)
    assert bool(((u > 0.25) & (u < 0.5)).all()) and u[0] != u[1]


@pytest.mark.parametrize(("mean", "std"), [(0.3, 1.3), (1.0, 1.0)])
def test_weighted_ranks_are_exact_with_the_weight_of_the_truth(mean: float, std: float) -> None:
    """Importance samples of N(mean, std^2) for N(0, 1), of few effective ones."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(10_000, 1, generator=g, dtype=torch.float64)
    s = mean + std * torch.randn(10_000, 12, 1, generator=g, dtype=torch.float64)

    def log_weight(value: Tensor) -> Tensor:
        return 0.5 * (((value - mean) / std) ** 2 - value**2)[..., 0]

    assert ks_p_value(randomised_ranks(x, s, log_weight(s) + 7, log_weight(x) + 7)) > 0.01
    radii = nearest_radii(x[:2000], s[:2000], log_weight(s[:2000]), log_weight(x[:2000]))
    assert ks_p_value(randomised_ranks(*radii, log_weight(s[:2000]), log_weight(x[:2000]))) > 0.01
    if mean == 1:  # unweighted, they are of another law; without the truth's weight the tail that has no samples is seen
        assert ks_p_value(randomised_ranks(x, s)) < 1e-9 and ks_p_value(randomised_ranks(x, s, log_weight(s))) < 1e-9


def test_whole_weights_are_repeated_samples() -> None:
    g = torch.Generator().manual_seed(2)
    x, s, _ = gaussian_problems(100, 12, 4)
    times = torch.stack([torch.randperm(12, generator=g) for _ in range(100)]) % 3 + 1
    repeated = torch.stack([s[p].repeat_interleave(times[p], 0) for p in range(100)])
    logs = times.double().log() - 3
    logs[:, 0] = torch.where(times[:, 0] == 1, -math.inf, logs[:, 0])  # a weight of nothing is no sample
    weights = logs.exp() / logs.exp().sum(1, keepdim=True)
    a = randomised_ranks(x, s, logs, torch.full((100,), -3.0), seed=1)
    kept = times[:, 0] != 1
    b = randomised_ranks(x, repeated, seed=1)
    assert torch.allclose(a[kept], b[kept], atol=1e-12) and not torch.allclose(a, b, atol=1e-3), "the truth counts as one sample"
    below = torch.einsum("pl,plk->pk", weights, (s.flatten(2) < x.flatten(1)[:, None]).double())
    own = weights.square().sum(1, keepdim=True)
    u = randomised_ranks(x, s, logs, seed=1)
    assert bool(((u >= below / (1 + own)) & (u <= (below + own) / (1 + own))).all()), "one effective sample wide"


def test_weighted_samples_say_what_resampled_ones_say() -> None:
    """Importance samples from a law that is too wide: their weights make them calibrated, and so does resampling by these."""
    wide = 1.3
    x, s, references = gaussian_problems(200, 300, 11, stretch=wide)
    precision = torch.eye(6, dtype=torch.float64) + OPERATOR.T @ OPERATOR / NOISE**2
    mean = references.flatten(1) * 6 @ torch.linalg.inv(precision) / NOISE**2
    centred = s.flatten(2) - mean[:, None]
    square = torch.einsum("plk,kj,plj->pl", centred, precision, centred)
    logs = 5 - square / 2 * (1 - 1 / wide**2)
    chosen = torch.multinomial(logs.softmax(1), 60, replacement=True, generator=torch.Generator().manual_seed(1))
    drawn = s.gather(1, chosen[..., None, None].expand(-1, -1, *SHAPE))
    weighted, resampled, neither = (judge(x, *what, references=references) for what in ((s, logs), (drawn,), (s,)))
    assert weighted.calibrated and resampled.calibrated and neither.p_value < 1e-3
    for name in ("entries", "directions", "regions"):
        a, b = getattr(weighted, name), getattr(resampled, name)
        assert bool(((a.value - b.value).abs() < (0.1 if name == "regions" else 0.03)).all()), name
    assert weighted.energy.value == pytest.approx(resampled.energy.value, abs=0.02)
    assert neither.energy.value > weighted.energy.value + 0.02 and 100 < weighted.ess < 250


def test_the_distribution_function_s_bands_hold_it_in_95_percent() -> None:
    g = torch.Generator().manual_seed(3)
    for count in (7, 40, 150):
        found = uniformity(torch.rand(count, 4000, generator=g, dtype=torch.float64))
        p = found.each
        for level in (0.02, 0.05, 0.3):
            assert float((p <= level).double().mean()) < level + 4 * math.sqrt(level / 4000)  # exact, in steps of what can be
        if count > 7:
            assert float((p < 0.05).double().mean()) > 0.035 and float((p < 0.5).double().mean()) > 0.42
        outside = ((found.ecdf < found.low - 1e-12) | (found.ecdf > found.high + 1e-12)).any(1).double().mean()
        assert 0.05 + 4 * math.sqrt(0.05 / 4000) > float(outside) > (0.03 if count > 7 else 0)
        assert found.p_value == min(1.0, 4000 * float(p.min()))
    bad = torch.rand(100, 2, generator=g, dtype=torch.float64)
    bad[:, 1] = bad[:, 1] ** 2
    assert uniformity(bad).p_value < 1e-3 and uniformity(bad[:, :1]).p_value > 0.05


def test_regions_of_highest_density_have_any_shape() -> None:
    """Of a ring, the middle is in no region; the truth that lies there is covered by none."""
    g = torch.Generator().manual_seed(4)
    angle = 6.28318 * torch.rand(1, 200, generator=g, dtype=torch.float64)
    ring = torch.stack((angle.cos(), angle.sin()), 2).expand(2, -1, -1)
    truths = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    u = randomised_ranks(*nearest_radii(truths, ring))
    assert float(u[0]) > 0.99 and float(u[1]) < 0.9
    points = torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0], dtype=torch.float64)[None, :, None].expand(2, -1, -1)
    own, others = nearest_radii(points[:, 0], points[:, 1:])  # with 4 samples a half of the others' weight, the second neighbour
    assert own.flatten().tolist() == [3, 3] and others[0].flatten().tolist() == [2, 3, 6, 12]
    logs = torch.tensor([3.0, 1.0, 1.0, 1.0]).log().expand(2, 4)
    own, others = nearest_radii(points[:, 0], points[:, 1:], logs, torch.zeros(2))  # weights 1, 3, 1, 1, 1
    assert own.flatten().tolist() == [1, 1] and others[0].flatten().tolist() == [2, 2, 6, 14]
    along = projections(torch.eye(6).reshape(6, 2, 3), torch.eye(6).reshape(6, 1, 2, 3), 7, seed=1)
    assert torch.allclose(along[0].norm(dim=0), torch.ones(7, dtype=torch.float64)) and torch.equal(along[0], along[1][:, 0])
    middle = randomised_ranks(*projections(truths[:1].expand(2, 2), ring, 5))
    assert bool(((middle - 0.5).abs() < 0.15).all()), "which no projection tells"


def test_scores_are_those_of_their_formulas_and_smallest_for_the_truth_s_law() -> None:
    # N(0, 1) by X ~ N(m, s^2): Gneiting and Raftery's closed form of the CRPS, averaged over truths
    x, s, _ = gaussian_problems(3, 5, 5)
    f, t = s.flatten(2).double(), x.flatten(1).double()
    near = (f - t[:, None]).norm(dim=2).mean(1)
    pairs = torch.stack([(f[:, i] - f[:, j]).norm(dim=1) for i in range(5) for j in range(5) if i != j]).mean(0)
    assert torch.allclose(energy_score(x, s)[1], near - pairs / 2)
    one = (f - t[:, None]).abs().mean((1, 2))
    pairs = torch.stack([(f[:, i] - f[:, j]).abs().mean(1) for i in range(5) for j in range(5) if i != j]).mean(0)
    assert torch.allclose(crps(x, s)[1], one - pairs / 2)
    logs = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).expand(3, 4)
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    near = ((f[:, :4] - t[:, None]).norm(dim=2) * w).sum(1)
    pairs = sum(w[i] * w[j] * (f[:, i] - f[:, j]).norm(dim=1) for i in range(4) for j in range(4)) / (1 - w.square().sum())
    assert torch.allclose(energy_score(x, s[:, :4], logs)[1], near - pairs / 2)
    g = torch.Generator().manual_seed(6)
    truths, z = torch.randn(4000, 1, generator=g, dtype=torch.float64), torch.randn(4000, 20, 1, generator=g, dtype=torch.float64)
    right = crps(truths, z)[0]
    assert right.value == pytest.approx(1 / math.sqrt(math.pi), abs=4 * right.std_error)
    for other in (1.4 * z, 0.7 * z, z + 0.5):
        assert crps(truths, other)[0].value > right.value + 4 * right.std_error * 0.5


def test_results_are_seeded_and_go_into_json() -> None:
    x, s, references = gaussian_problems(30, 8, 7)
    a, b = (judge(x.float(), s.float(), references=references.float(), seed=5).to_json() for _ in range(2))
    assert a == b and a != judge(x, s, references=references, seed=6).to_json()
    assert a["coverage"]["entries"]["levels"] == list(LEVELS) and 0 <= a["tarp_p"] <= 1 and len(a["sbc"]["ecdf"]) == PROJECTIONS
    assert math.isnan(judge(x, s).tarp_p) and "90%: " in str(judge(x, s).entries)


def test_bad_input_is_one_line() -> None:
    x, s, references = gaussian_problems(10, 4, 8)
    logs = torch.zeros(10, 4)
    for call, message in (
        (lambda: judge(x, x), "truths (P, *) and samples (P, L, *) are needed"),
        (lambda: judge(x[:5], s), "are needed, got (5, 2, 3) and (10, 4, 2, 3)"),
        (lambda: judge(x[:1], s[:1]), "at least 2 problems"),
        (lambda: judge(x * math.nan, s), "truths hold 60 NaN"),
        (lambda: judge(x, s[:, :1]), "at least 2 samples of each posterior, got 1"),
        (lambda: judge(x, s, logs[:, :3]), "log_weights must be (P, L) = (10, 4), got (10, 3)"),
        (lambda: judge(x, s, logs * math.nan), "log_weights must be numbers"),
        (lambda: judge(x, s, logs - math.inf), "some of each problem finite"),
        (lambda: judge(x, s, truth_log_weights=logs[:, 0]), "give both or neither"),
        (lambda: judge(x, s, logs, truth_log_weights=logs), "truth_log_weights must be (10,)"),
        (lambda: judge(x, s, references=references[:3]), "one point for each truth, (10, 2, 3), got (3, 2, 3)"),
        (lambda: reference_distances(x, s, s), "one point for each truth"),
        (lambda: coverage(torch.rand(10, 2), (1.0,)), "levels must be in (0, 1), got (1.0,)"),
        (lambda: coverage(torch.rand(10, 2) + 1), "ranks must be (P, K) in [0, 1]"),
        (lambda: ks_p_value(torch.rand(10, 2)), "ranks of one quantity"),
        (lambda: judge(x, s, seed=-1), "seed must be in"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value) and "\n" not in str(caught.value)
