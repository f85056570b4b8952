"""Kinds of columns: exact round trips, decision rules for any features, bounds on the likelihood, and what is inferred and why."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from toy_columns import COUNT, column, table

from sde_gen.data import Normalizer
from sde_gen.data.columns import KINDS, Codec, Column
from sde_gen.data.columns.codec import read_asked
from sde_gen.data.columns.gaps import Gaps, Gate
from sde_gen.data.columns.kinds import FILL, RING, Angle, Category, Fraction, Integer, Positive, ZeroInflated


def test_what_goes_in_comes_out_and_other_rows_too() -> None:
    codec, _ = Codec.fit(table())
    assert len(codec.labels) == codec.width == len(codec.chains) == len(codec.breaks) and len(set(codec.labels)) == codec.width
    codec = Codec.from_config(json.loads(json.dumps(codec.to_config())))
    features = codec.encode(table())
    assert features.shape == (COUNT, codec.width) and features.dtype == np.float64 and np.isfinite(features).all()
    for before, after in zip(table(), codec.decode(features), strict=True):
        assert np.array_equal(before.missing, after.missing), before.name
        there = ~before.missing
        if before.values.dtype.kind == "U":
            assert np.array_equal(before.values, after.values)
        else:
            np.testing.assert_allclose(after.values[there], before.values[there], rtol=1e-14, atol=1e-14, err_msg=before.name)
    cells = dict(zip(codec.names, codec.cells(features), strict=True))
    assert cells["calls"][:3] == [str(int(v)) for v in table()[4].values[:3]] and cells["income"][int(table()[3].missing.argmax())] == "NA"
    assert set(cells["tree"]) == {"oak", "ash, common", 'a "fir"', "elm", "?"} and set(cells["flag"]) == {"0", "1", ""}
    assert not np.array_equal(codec.encode(table(), seed=1), features), "cells are drawn in"


def test_the_normaliser_makes_normal_features_of_all_but_cycles_and_one_hot_words_and_gives_them_back() -> None:
    codec, _ = Codec.fit(table())
    x = torch.from_numpy(codec.encode(table()))
    normalizer = Normalizer.fit(x, transforms=codec.chains, breaks=codec.breaks)
    z = normalizer.encode(x)
    for k, label in enumerate(codec.labels):
        if any(mark in label for mark in ("=", "rain (zero)", "(missing)")):  # cells apart
            assert len(np.unique(np.floor(x[:, k].numpy()))) == 2 and abs(float(z[:, k].std()) - 1) < 1e-3
        elif label in ("flag", "gain (zero)"):  # with what stands in for missing ones
            assert codec.chains[k] == () and float(z[:, k].mean()) == pytest.approx(0, abs=1e-9)
        elif "cos" not in label and "sin" not in label:
            assert stats.kstest(z[:, k].numpy(), "norm").statistic < 0.03, label
    for before, after in zip(codec.decode(x.numpy()), codec.decode(normalizer.decode(z).numpy()), strict=True):
        assert np.array_equal(before.missing, after.missing)
        if after.values.dtype.kind != "f":
            assert np.array_equal(before.values, after.values), before.name


@pytest.mark.parametrize("size", [0.5, 3.0, 20.0])
def test_any_features_are_values_that_the_column_can_have(size: float) -> None:
    """Decoded normal noise, as an untrained network's samples are: no negative count, no strange word, no angle beyond its turn."""
    codec, _ = Codec.fit(table())
    x = torch.from_numpy(codec.encode(table()))
    normalizer = Normalizer.fit(x, transforms=codec.chains, breaks=codec.breaks)
    noise = size * torch.randn(COUNT, codec.width, generator=torch.Generator().manual_seed(0))
    columns = codec.decode(normalizer.decode(noise).numpy())
    for kind, found in zip(codec.kinds, columns, strict=True):
        inner = kind.inner if isinstance(kind, Gaps) else kind
        assert not inner.strange(found.values[~found.missing]).any(), found.name
    by_name = {found.name: found for found in columns}
    assert by_name["rain"].values.min() == 0 and by_name["calls"].values.dtype == np.int64 and by_name["humidity"].values.max() == 1
    again = codec.encode(
        [Column(c.name, c.values if c.values.dtype.kind == "U" else np.where(c.missing, np.nan, c.values), c.missing) for c in columns]
    )
    assert np.isfinite(again).all()


LAWS = {
    "integer": (Integer(1.0, 0.0, 3.0, (0.0, 1.0, 2.0, 3.0)), np.array([0.0, 1, 2, 3])),
    "embedded": (Category(("a", "b", "c"), "embedded"), np.array(["a", "b", "c"])),
    "one_hot": (Category(("a", "b", "c"), "one_hot"), np.array(["a", "b", "c"])),
    "embedded, filled": (Category(("a", "b"), "embedded", FILL), np.array(["a", "b"])),
    "one_hot, filled": (Category(("a", "b", "c"), "one_hot", FILL), np.array(["a", "b", "c"])),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_density_that_is_even_in_the_cells_has_the_words_own_probabilities(name: str) -> None:
    """The bound is met: features of a value have density P(value)/volume of its cell, and log_q is that of their draw."""
    kind, values = LAWS[name]
    features = kind.encode(np.repeat(values, 200), np.random.default_rng(0))
    cells = np.floor(features)
    assert np.array_equal(cells.reshape(len(values), 200, -1).min(1), cells.reshape(len(values), 200, -1).max(1)), "one cell a value"
    assert len({tuple(row) for row in cells.tolist()}) == len(values), "cells do not overlap"
    assert np.array_equal(kind.decode(features), np.repeat(values, 200))
    fill = getattr(kind, "fill", 1.0)
    np.testing.assert_allclose(kind.log_q(features), -kind.width * math.log(fill), atol=1e-15)
    within = features % 1
    assert within.min() >= 0.5 - fill / 2 and within.max() < 0.5 + fill / 2 and np.ptp(within) > 0.95 * fill, "all of its part of a cell"


@pytest.mark.parametrize("step", [None, 1.0])
def test_the_density_of_an_angle_is_that_of_its_features_on_the_ring(step: float | None) -> None:
    """log p(features) - log_q is the angle's own log-density for p = p(angle) q(radius)/radius, whatever the radius."""
    kind = Angle(360.0, -180.0, step)
    values = np.random.default_rng(0).integers(-180, 180, 500).astype(float)
    features = kind.encode(values, np.random.default_rng(1))
    r, turn = np.hypot(*features.T), np.arctan2(features[:, 1], features[:, 0])
    of_turn = stats.vonmises(2.0).logpdf(turn)  # with respect to radians
    of_features = of_turn + stats.lognorm(RING).logpdf(r) - np.log(r)
    found = of_features - kind.log_q(features)
    expected = of_turn + math.log(2 * math.pi / 360) + (0 if step is None else math.log(step))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(kind.decode(features), values, atol=1e-12)
    assert np.std(r) > 0.05


@pytest.mark.parametrize("inner", [Positive(), Fraction(), ZeroInflated(), Angle()], ids=lambda kind: kind.name)
def test_what_stands_in_for_a_missing_value_says_nothing_of_it(inner) -> None:  # type: ignore[no-untyped-def]
    """It is drawn from the density that log_q says: for a model of that law the bound is P(missing), whatever was drawn."""
    rng = np.random.default_rng(0)
    values = 0.2 + 0.6 * rng.random(COUNT)
    missing = rng.random(COUNT) < 0.25
    kind = Gaps.around(inner, inner.encode(values[~missing], rng))
    features = kind.encode_apart(np.where(missing, np.nan, values), missing, rng)
    assert np.array_equal(kind.apart(features), missing) and features.shape[1] == kind.width
    np.testing.assert_allclose(kind.decode(features)[~missing], values[~missing], rtol=1e-12)
    drawn = features[missing, 1:]
    if inner.domain == "line":
        law = stats.norm(kind.mean, kind.std).logpdf(drawn).sum(1)
    elif inner.domain == "positive":
        law = stats.lognorm(kind.std[0], scale=math.exp(kind.mean[0])).logpdf(drawn[:, 0])
    else:
        law = stats.norm(kind.mean[0], kind.std[0]).logpdf(np.log(drawn / (1 - drawn)))[:, 0] - np.log(drawn * (1 - drawn))[:, 0]
    np.testing.assert_allclose(kind.log_q(features)[missing], law - math.log(FILL), rtol=1e-10)


@pytest.mark.parametrize("whole", [False, True])
def test_a_gate_keeps_zeros_exact_and_says_the_density_of_what_stands_in_for_them(whole: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(COUNT) < 0.7, 0.0, np.ceil(np.exp(rng.normal(6, 1, COUNT))) if whole else rng.gamma(0.7, 8e-8, COUNT))
    codec, lines = Codec.fit([column("rain", values)])
    kind = codec.kinds[0]
    assert isinstance(kind, Gate) and isinstance(kind.inner, Integer if whole else Positive) and "zero_inflated" in lines[0]
    features = codec.encode([column("rain", values)])
    found = codec.decode(features)[0].values
    assert np.array_equal(found, values) and (found.dtype.kind == "i") == whole
    zero = values == 0
    assert np.array_equal(features[:, 0] >= 1, zero) and features.min() > 0
    law = stats.lognorm(kind.std[0], scale=math.exp(kind.mean[0]))
    assert stats.kstest(features[zero, 1], law.cdf).pvalue > 1e-3
    np.testing.assert_allclose(codec.log_q(features), np.where(zero, law.logpdf(features[:, 1]), 0.0) - math.log(FILL), rtol=1e-10)
    any_features = codec.decode(np.array([[0.2, -7.0], [0.9, 1e-300], [1.7, 5.0]]))[0].values
    assert (
        (any_features[:2] > 0).all() and any_features[2] == 0 and kind.strange(np.array([-1.0, 0, np.nan])).tolist() == [True, False, True]
    )
    before = Codec.from_config(codec.to_config() | {"kinds": [ZeroInflated(None).settings()]})  # of a run of an earlier version
    assert before.width == 1 and np.array_equal(before.decode(before.encode([column("rain", values)]))[0].values, values)


def test_the_bound_of_a_fraction_is_in_its_own_units() -> None:
    kind = Fraction(0.0, 100.0, (True, False))
    values = np.array([0.0, 25.0, 75.0])
    features = kind.encode(values, np.random.default_rng(0))
    assert kind.log_q(features).tolist() == [0.0, math.log(100), math.log(100)] and kind.decode(features).tolist() == values.tolist()


def test_what_columns_are_taken_for_and_why() -> None:
    codec, lines = Codec.fit(table())
    expected = [
        ("rain", "zero_inflated", "exact zeros, never negative: zero-inflated"),
        ("wind_direction", "angle", "its name, and 0 .. 359 degrees"),
        ("phase", "angle", "radians"),
        ("income", "positive", "never 0 or negative.*missing, which is a value that can be sampled"),
        ("calls", "integer", "whole numbers, .* different ones, never negative"),
        ("tree", "category (one-hot)", "5 words: oak, ash, common.*missing, a word like the others"),
        ("flag", "category (embedded)", "whole numbers, 0 and 1 alone"),
        ("share", "fraction", "all from 0 to 1"),
        ("humidity", "fraction", "all from 0 to 1"),
        ("temperature", "number", "real numbers"),
        ("price", "integer", "multiples of 0.1"),
        ("large", "integer", "whole numbers"),
        ("gain", "zero_inflated", "exact zeros, never negative, else whole numbers up to [0-9]+: zero-inflated; [0-9.]+ % missing"),
    ]
    for (name, kind, why), line in zip(expected, lines, strict=True):
        assert line.startswith(f"column    {name}: {kind},"), line
        assert re.search(why, line), line
    assert codec.kinds[0].settings()["inner"]["decimals"] is None and codec.kinds[9].settings()["inner"]["decimals"] == 5


def test_kinds_as_asked() -> None:
    columns = table()
    asked = {
        "rain": {"kind": "number", "transform": ("log1p",)},
        "phase": {"kind": "angle", "period": 2 * math.pi},
        "tree": {"kind": "category", "form": "embedded"},
        "calls": {"kind": "integer", "low": 0, "high": 30},
        "share": {"kind": "fraction", "low": 0, "high": 2},
        "income": {"transform": ("log",)},
    }
    codec, lines = Codec.fit(columns, asked)
    by_name = dict(zip(codec.names, codec.kinds, strict=True))
    assert by_name["rain"].name == "number" and codec.chains[0] == ("log1p",) and "number, log1p: as asked" in lines[0]
    assert by_name["tree"].width == 1 and by_name["calls"].settings()["high"] == 30
    place = codec.places[codec.names.index("income")]
    assert codec.chains[place] == [(), ("log",)]
    np.testing.assert_allclose(codec.decode(codec.encode(columns))[7].values, columns[7].values)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rain": "positive"}, "column 'rain' holds 0.0, which is no positive"),
        ({"tree": "integer"}, "column 'tree' holds words .*'category' or 'drop'"),
        ({"share": "integer"}, "column 'share' holds .*, which is no integer"),
        ({"wind_direction": {"kind": "angle", "period": 6.28}}, "column 'wind_direction' holds .* no angle .from 0 to 6.28"),
        ({"tree": {"kind": "category", "form": "binary"}}, "form 'binary'; 'embedded' or 'one_hot'"),
        ({"tree": {"kind": "category", "words": ["oak"]}}, "which is no category .its words are oak"),
        ({"calls": {"kind": "integer", "lowest": 0}}, "lowest"),
        ({"rains": "number"}, "names 'rains', which the table does not have; its columns are rain"),
        ({"rain": "rainy"}, "unknown kind 'rainy'; choose from number"),
        ({"rain": 3}, "column 'rain': 3; a kind"),
        ({"rain": {"transform": "sqrt"}}, "transform 'sqrt'; one or a list of standard, log1p"),
        (["rain"], "columns are .*, got list"),
    ],
)
def test_what_cannot_be_asked_is_one_line(asked, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message) as caught:
        Codec.fit(table(), read_asked("t.csv", asked, [c.name for c in table()]))
    assert "\n" not in str(caught.value)


def test_words_that_do_not_repeat_and_columns_of_gaps_are_no_categories() -> None:
    names = np.array([f"person {k}" for k in range(COUNT)])
    with pytest.raises(ValueError, match=r"'who' holds 2,000 different words in 2,000 cells.*\{who: drop\}"):
        Codec.fit([column("who", names)])
    with pytest.raises(ValueError, match="'empty': no value is known"):
        Codec.fit([column("empty", np.zeros(COUNT), np.ones(COUNT, bool))])
    codec, _ = Codec.fit(table())
    other = table()
    other[5] = column("tree", np.array(["palm"] * COUNT))
    with pytest.raises(ValueError, match="'tree' holds palm, which is no category of this table"):
        codec.encode(other)


@pytest.mark.parametrize(
    "config", [{}, {"names": ["a"]}, 3, {"names": ["a"], "kinds": [{"kind": "odd"}], "transforms": [None], "dtypes": [None], "gaps": [""]}]
)
def test_a_bad_configuration_is_refused(config) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"codec|kind"):
        Codec.from_config(config)


def test_every_kind_has_a_column_here() -> None:
    codec, _ = Codec.fit(table())
    assert {(kind.inner if isinstance(kind, Gaps) else kind).name for kind in codec.kinds} == set(KINDS)


def test_steps_of_any_length_come_back_and_odd_options_are_one_line() -> None:
    whole = np.arange(60.0).repeat(5)
    for values, asked in (
        (whole / 3, {"kind": "integer", "step": 1 / 3}),  # which no number of places writes
        (whole * 7, {"kind": "angle", "period": 420, "step": 7}),
    ):
        column = Column("a", values, np.zeros(300, bool))
        codec, _ = Codec.fit([column], {"a": asked})
        codec = Codec.from_config(codec.to_config())
        np.testing.assert_allclose(codec.decode(codec.encode([column]))[0].values, values, atol=1e-9)
    column = Column("a", whole, np.zeros(300, bool))
    for asked, words in (
        ({"kind": "integer", "step": 0}, "column 'a': step 0; a finite number greater than 0 is needed"),
        ({"kind": "integer", "step": -1}, "step -1; a finite number greater than 0"),
        ({"kind": "integer", "low": [0]}, r"low \[0\]; a finite number is needed"),
        ({"kind": "fraction", "low": None}, "low None; a finite number is needed"),
        ({"kind": "angle", "period": 60, "step": "x"}, "step 'x'; a finite number greater than 0"),
        ({"kind": "angle", "period": 60, "step": 7}, "a whole number of steps in the period is needed"),
        ({"kind": "angle", "period": 60, "step": 5}, "holds 1.0, which is no angle \\(multiples of 5, from 0 to 60\\)"),
        ({"kind": "category", "words": 5}, "words 5; a list of different words is needed"),
        ({"kind": "category", "words": [0, 1, 1]}, "a list of different words is needed"),
    ):
        with pytest.raises(ValueError, match=words):
            Codec.fit([column], {"a": asked})
