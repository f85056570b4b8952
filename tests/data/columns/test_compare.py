"""Columns beside held-out ones: the same law is within chance, another is not, and what is said is what is there."""

from __future__ import annotations

import numpy as np
import pytest

from sde_gen.data.columns import Column
from sde_gen.data.columns.compare import compare


def table(seed: int, count: int, shift: float = 0.0, sign: float = 1.0) -> list[Column]:
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, count))
    rain = np.where(u < 0, 0, np.exp(u + shift))
    words = np.where(rng.random(count) < 0.3 + shift / 5, "ash", "oak")
    gone = rng.random(count) < 0.1 + shift / 5
    return [
        Column("rain", rain, np.zeros(count, bool)),
        Column("other", np.where(gone, np.nan, sign * u + 0.1 * v), gone),
        Column("tree", words, np.zeros(count, bool)),
    ]


def test_the_same_law_is_within_chance() -> None:
    beyond = [row["distance"] > row["chance"] for seed in range(30) for row in compare(table(seed, 800), table(100 + seed, 700))["columns"]]
    assert sum(beyond) <= 12, "5 % of 90, and no more than that is likely of"
    found = compare(table(0, 800), table(1, 700))
    assert found["correlations"]["largest"] < found["correlations"]["chance"] == pytest.approx(3 * (1 / 800 + 1 / 700) ** 0.5)
    rain, other, tree = found["columns"]
    assert rain["zeros"] == pytest.approx([0.5, 0.5], abs=0.06) and rain["range"][0][0] == 0 and "missing" not in rain
    np.testing.assert_allclose(
        rain["quantiles"], [np.quantile(c[0].values, [0.05, 0.5, 0.95]) for c in (table(0, 800), table(1, 700))], rtol=0.05
    )
    assert tree["words"] == ["oak", pytest.approx(0.7, abs=0.05), pytest.approx(0.7, abs=0.05)] and "quantiles" not in tree
    assert other["missing"] == pytest.approx([0.1, 0.1], abs=0.04) and "zeros" not in tree and "range" not in tree


def test_another_law_is_not() -> None:
    found = compare(table(0, 800, shift=1.0, sign=-1.0), table(1, 700))
    assert all(row["distance"] > row["chance"] for row in found["columns"] if row["name"] != "other")
    assert found["correlations"]["largest"] > 1 and set(found["correlations"]["pair"]) == {"rain", "other"}
    rows = found["correlations"]["rows"]
    assert len(rows) == 3 and set(rows[0][:2]) == {"rain", "other"} and rows[0][2] < -0.7 and rows[0][3] > 0.7
    assert abs(rows[0][2] - rows[0][3]) == pytest.approx(found["correlations"]["largest"]) and abs(rows[2][2] - rows[2][3]) < 0.3
    one = compare(table(0, 800)[:1], table(1, 700)[:1])["correlations"]
    assert one["rows"] == [] and one["largest"] == 0 and one["pair"] == ["rain", "rain"]
    assert found["columns"][1]["missing"][0] == pytest.approx(0.3, abs=0.05)
    assert found["columns"][2]["distance"] == pytest.approx(0.2, abs=0.06), "of a word's share"
