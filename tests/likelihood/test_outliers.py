import math

import numpy as np
import pytest
import torch

from sde_gen import make_sde
from sde_gen.data import Normalizer
from sde_gen.exact.mixtures import MixtureData
from sde_gen.likelihood.outliers import item_scores, p_values

SDE = make_sde("vp")


def mixture(dim: int = 3) -> MixtureData:
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(2, dim, generator=generator, dtype=torch.float64)
    half = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64)
    return MixtureData(torch.tensor([1.0, 2.0]), means, half @ half.mT / dim + 0.1 * torch.eye(dim))


def test_scores_are_the_density_in_the_datas_units_and_the_same_in_parts():
    data, scale = mixture(), torch.tensor([10.0, 0.01, 3.0], dtype=torch.float64)
    shift = torch.tensor([5.0, -1.0, 0.0], dtype=torch.float64)
    model = data.model(SDE)
    model.normalizer = Normalizer(shift, scale)
    z = data.sample(9, seed=1)
    found = item_scores(model, shift + scale * z, rtol=1e-5, atol=1e-5)
    exact = data.log_prob(z, SDE, SDE.t_min) - scale.log().sum() + 3 * torch.log(SDE.marginal(torch.tensor(SDE.t_min))[0])
    exact = data.log_prob(SDE.marginal(torch.tensor(SDE.t_min))[0] * z, SDE, SDE.t_min) + (exact - data.log_prob(z, SDE, SDE.t_min))
    assert found.unit == "nats" and bool((found.std_error == 0).all())
    torch.testing.assert_close(found.value, exact, atol=2e-3, rtol=0)
    common = {"rtol": 1e-3, "atol": 1e-3, "divergence": "hutchinson", "seed": 3}
    whole = item_scores(model, shift + scale * z, **common)
    parts = [item_scores(model, (shift + scale * z)[rows], index_offset=rows.start, **common) for rows in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(whole.value, torch.cat([part.value for part in parts]))
    assert not torch.equal(whole.value[4:], item_scores(model, (shift + scale * z)[4:], **common).value)  # other random numbers


def test_integers_are_scored_in_bits_with_errors_of_their_own():
    data = mixture(2)
    model = data.model(SDE)
    model.normalizer = Normalizer(torch.full((2,), 100.0), torch.full((2,), 12.0))
    v = (100 + 12 * data.sample(12, seed=2)).round().long().clamp(0, 255)
    one = item_scores(model, v, 256, rtol=1e-4, atol=1e-4, dequantization="uniform", draws=1)
    several = item_scores(model, v, 256, rtol=1e-4, atol=1e-4, dequantization="uniform", draws=8)
    exact = -data.log_prob((v.double() - 100) / 12) / math.log(2) / 2 + math.log2(
        12
    )  # of the density at the bin's centre, a wide one's probability
    torch.testing.assert_close(several.value, exact.double(), atol=0.05, rtol=0)
    assert several.unit == "bits/dim" and torch.equal(several.likeness, -several.value)
    assert bool((one.std_error == 0).all()) and bool((several.std_error > 0).all())  # of an exact trace the draws alone vary
    spread = ((one.value - exact).square().mean() / 8).sqrt()
    assert 0.3 < float(several.std_error.mean() / spread) < 3
    parts = [
        item_scores(model, v[rows], 256, rtol=1e-4, atol=1e-4, dequantization="uniform", index_offset=rows.start)
        for rows in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(one.value, torch.cat([part.value for part in parts]))


def test_p_values_are_ranks_with_ties_and_gaps():
    low, two = p_values(torch.tensor([0.0, 1.0, 2.5, 9.0, math.nan]), torch.tensor([1.0, 2.0, 3.0, math.nan]))
    np.testing.assert_allclose(low, [1 / 4, 2 / 4, 3 / 4, 4 / 4, math.nan])
    np.testing.assert_allclose(two, [2 / 4, 1.0, 1.0, 2 / 4, math.nan])
    with pytest.raises(ValueError, match="held-out items with a value, got none"):
        p_values(torch.zeros(2), torch.full((3,), math.nan))


def test_p_values_of_data_like_the_held_out_are_no_smaller_than_they_say():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 40, generator=generator).exp()
    for which in (0, 1):
        p = torch.stack([p_values(row[:1], row[1:])[which] for row in draws])
        for level in (0.05, 0.2, 0.5):
            share = float((p <= level).double().mean())
            assert level - 0.05 < share < level + 3 * math.sqrt(level * (1 - level) / 2000) + 1e-9
