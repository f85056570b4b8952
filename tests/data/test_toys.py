"""The data sets whose law under a condition is known: drawn from it, and what says it is right."""

from __future__ import annotations

import math

import pytest
import torch

from sde_gen.data import load_dataset
from sde_gen.data.toys import block_means, fine_law, response_law


def test_responses_are_normal_about_what_their_dose_and_age_say() -> None:
    data = load_dataset("regression", seed=2)
    assert data.train.shape == (20_000, 1) and set(data.cond) == set(data.test_cond) == {"dose", "age"} and data.test is not None
    for x, cond in ((data.train, data.cond), (data.test, data.test_cond)):
        mean, std = response_law(cond["dose"], cond["age"])
        z = (x[:, 0].double() - mean) / std
        assert abs(float(z.mean())) < 4 / math.sqrt(len(z)) and abs(float(z.std()) - 1) < 4 / math.sqrt(2 * len(z))
        assert abs(float(z.pow(4).mean()) - 3) < 4 * math.sqrt(96 / len(z)), "normal, not heavier"
        wide = cond["dose"] > 5
        assert abs(float(z[wide].std()) - 1) < 0.1 and abs(float(z[~wide].std()) - 1) < 0.1, "whatever the dose"
    dose, age = data.cond["dose"], data.cond["age"]
    assert 0 <= float(dose.min()) < 0.1 and 9.9 < float(dose.max()) <= 10 and float(age.min()) >= 20 and float(age.max()) <= 80
    assert not torch.equal(data.train, load_dataset("regression", seed=3).train)


def test_the_law_of_a_response() -> None:
    mean, std = response_law(torch.tensor([math.pi / 2, 0.0]), torch.tensor([40.0, 70.0]))
    torch.testing.assert_close(mean, torch.tensor([58.0, 50.0]))
    torch.testing.assert_close(std, torch.tensor([1 + 0.15 * math.pi, 1.0]))


def test_fields_are_stationary_and_their_block_means_are_the_condition() -> None:
    data = load_dataset("downscale", seed=2)
    x = data.train.double()
    assert x.shape == (20_000, 1, 16, 16) and data.test_cond["coarse"].shape == (2_000, 1, 4, 4)
    torch.testing.assert_close(block_means(data.train), data.cond["coarse"])
    torch.testing.assert_close(block_means(x)[:5, 0, 1, 2], x[:5, 0, 4:8, 8:12].mean((1, 2)))
    assert float((x.mean(0) - 15).abs().max()) < 0.2 and float((x.std(0) - 4).abs().max()) < 0.15
    for step in (1, 3, 7):  # along either axis
        r = math.sqrt(3) * step / 3
        for a, b in ((x[:, :, step:], x[:, :, :-step]), (x[..., step:], x[..., :-step])):
            assert float(((a - 15) * (b - 15)).mean()) == pytest.approx(16 * (1 + r) * math.exp(-r), abs=0.25)


def test_the_law_of_a_fine_field_is_that_of_gaussians_told_their_block_means() -> None:
    data = load_dataset("downscale", seed=2)
    mean, covariance = fine_law(data.cond["coarse"])
    torch.testing.assert_close(block_means(mean).float(), data.cond["coarse"], rtol=0, atol=1e-4)
    values = torch.linalg.eigvalsh(covariance)
    assert float(values[:16].abs().max()) < 1e-10 < float(values[16]), "nothing is left of the 16 means"
    off = (data.train.double() - mean).flatten(1)
    found, count = off.T @ off / len(off), len(off)
    expected_error = math.sqrt((1 + float(covariance.trace() ** 2 / covariance.square().sum())) / count)
    assert float((found - covariance).norm() / covariance.norm()) == pytest.approx(expected_error, rel=0.15)
    coarse = data.cond["coarse"].double().flatten(1)
    cross = off.T @ (coarse - coarse.mean(0)) / count
    assert float(cross.abs().max()) < 6 * float(off.std()) * float(coarse.std()) / math.sqrt(count), "the rest is independent of them"


@pytest.mark.parametrize("name", ["regression", "downscale"])
def test_a_limit_takes_the_conditions_along(name: str) -> None:
    whole, part = load_dataset(name), load_dataset(name, limit=50)
    row = int((whole.train == part.train[7]).flatten(1).all(1).nonzero()[0])
    for key, value in part.cond.items():
        assert len(value) == 50 and torch.equal(value[7], whole.cond[key][row])
