"""Gaps of tables of kinds filled: against the exact law of a mixture, in every kind of column and form of file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from toy_columns import COUNT, column, table

import sde_gen
from sde_gen.commands.restore_problems import Problems, Task
from sde_gen.commands.restore_settings import RestoreSettings
from sde_gen.data import Normalizer
from sde_gen.data.columns import Codec, Column
from sde_gen.data.columns.gaps import Gaps
from sde_gen.data.columns.kinds import FILL
from sde_gen.data.gappy_rows import features_of, fill, read_gappy, write_filled
from sde_gen.data.transforms import Transforms
from sde_gen.exact.mixtures import GaussianData, MixtureData
from sde_gen.inverse import Gaussian, Mask, Measurement

SHARES, MEANS, STD = {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": -1.5, "b": 0.5, "c": 2.0}, 0.7


def test_words_and_numbers_are_filled_by_the_exact_law_of_the_one_given_the_other() -> None:
    """A number is normal about a mean that its word says: so it is given the word, and given the number Bayes' rule says the words."""
    rng = np.random.default_rng(0)
    words = rng.choice(list(SHARES), 2000, p=list(SHARES.values()))
    codec, _ = Codec.fit([column("w", words), column("x", np.array([MEANS[w] for w in words]) + STD * rng.normal(size=2000))])
    order = [str(word) for word in codec.kinds[0].words]  # type: ignore[attr-defined]
    means = torch.tensor([[*(1.5 if j == i else 0.5 for j in range(3)), MEANS[w]] for i, w in enumerate(order)], dtype=torch.float64)
    spread = torch.diag(torch.tensor([FILL**2 / 12] * 3 + [STD**2], dtype=torch.float64))
    law = MixtureData(torch.tensor([SHARES[w] for w in order], dtype=torch.float64), means, spread.expand(3, 4, 4))
    x = np.array([-1.0, 0.0, 1.0])
    gone = np.repeat([True, False], 3)
    rows = [column("w", np.array(["", "", "", "a", "b", "c"]), gone), column("x", np.concatenate((x, [0, 0, 0])), ~gone)]
    y = torch.from_numpy(features_of(codec, rows))
    assert torch.equal(y.isnan(), torch.from_numpy(np.stack([gone] * 3 + [~gone], 1)))
    measurement = Measurement(Mask(), Gaussian(0.0))
    post = sde_gen.posterior(law.model(sde_gen.make_sde("vp")), measurement, y, count=256, steps=40, solver="dpm_sde")
    weights = post.weights.double().numpy()
    (found, number), (uncertain, std), _ = fill(codec, rows, post.x.double().numpy(), weights)
    joint = np.array([SHARES[w] * np.exp(-0.5 * ((x - MEANS[w]) / STD) ** 2) for w in order])
    exact = joint / joint.sum(0)
    assert found.values[:3].tolist() == [order[k] for k in exact.argmax(0)] and found.values[3:].tolist() == ["a", "b", "c"]
    few = post.ess.numpy()
    np.testing.assert_array_less(np.abs(uncertain[:3] - (1 - exact.max(0))), 4 * 0.5 / np.sqrt(few[:3]))
    np.testing.assert_array_less(np.abs(number.values[3:] - np.array([MEANS[w] for w in "abc"])), 4 * 1.25 * STD / np.sqrt(few[3:]))
    np.testing.assert_allclose(std[3:], STD, atol=0.2)
    assert number.values[:3].tolist() == x.tolist() and not uncertain[3:].any() and not std[:3].any() and not found.missing.any()


def test_what_is_not_known_is_nan_in_features_and_filled_with_values_of_every_kind() -> None:
    full, codec = table(1), Codec.fit(table())[0]
    rng = np.random.default_rng(3)
    hidden = rng.random((len(full), COUNT)) < 0.3
    hidden[0, hidden.all(0)] = False
    rows = []
    for c, gone in zip(full, hidden, strict=True):
        gone = gone | c.missing
        rows.append(Column(c.name, np.where(gone, "" if c.values.dtype.kind == "U" else np.nan, c.values), gone))
    y = features_of(codec, rows)
    for c, kind, place in zip(rows, codec.kinds, codec.places, strict=True):
        first = place.start + isinstance(kind, Gaps)
        assert np.array_equal(np.isnan(y[:, first : place.stop]).all(1), c.missing) and not np.isnan(y[~c.missing, place]).any()
        assert first == place.start or bool((y[:, place.start] < 1).all()), "the value is there"
    truths = codec.encode(table(1), seed=9)
    draws = np.where(np.isnan(y)[:, None], truths[:, None], y[:, None])
    other = np.where(np.isnan(y)[:, None], np.roll(truths, 1, 0)[:, None], y[:, None])
    x, weights = np.concatenate((draws, other), 1), np.tile([0.7, 0.3], (COUNT, 1))
    found, uncertain, taken = fill(codec, rows, x, weights)
    for c, truth, one, spread, kind in zip(rows, full, found, uncertain, codec.kinds, strict=True):
        assert not one.missing[~c.missing].any() and not spread[~c.missing].any()
        inner = kind.inner if isinstance(kind, Gaps) else kind
        known = one.values[~one.missing]
        assert not inner.strange(known if known.dtype.kind == "U" else known.astype(float)).any(), c.name
        there = ~c.missing
        if c.values.dtype.kind == "U":
            assert np.array_equal(one.values[there], c.values[there])
        else:
            np.testing.assert_allclose(one.values[there].astype(float), c.values[there], rtol=1e-14)
        sure = c.missing & ~truth.missing & (taken[:, 0] == 0.7)
        if c.name not in ("wind_direction", "phase"):
            same = (
                one.values[sure] == truth.values[sure]
                if c.values.dtype.kind == "U"
                else np.isclose(one.values[sure].astype(float), truth.values[sure])
            )
            assert same.all() and sure.sum() > 50, c.name
    word = [c.name for c in rows].index("tree")
    fails = [rows[word].missing & gone for gone in (full[word].missing, np.roll(full[word].missing, 1))]  # a missing word fills no gap
    other = np.array([0.7, 0.3])
    assert (fails[0] ^ fails[1]).sum() > 50
    for first, second, left in ((True, False, [0.0, 1.0]), (False, True, [1.0, 0.0]), (False, False, other), (True, True, other)):
        chosen = taken[(fails[0] == first) & (fails[1] == second)]
        np.testing.assert_allclose(chosen, np.broadcast_to(left, chosen.shape), rtol=1e-12)
    assert found[word].missing[fails[0] & fails[1]].all() and not found[word].missing[~(fails[0] & fails[1])].any(), (
        "none is left to fill it"
    )


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_file_is_filled_in_its_gaps_and_stays_as_it_stands_elsewhere(ending: str, tmp_path: Path) -> None:
    words, numbers = np.array(["oak", "elm", "fir", "oak"] * 10), np.arange(40.0) + 0.5
    codec, _ = Codec.fit([column("tree", words), column("size", numbers)])
    path = tmp_path / f"t{ending}"
    if ending == ".parquet":
        frame = pandas.DataFrame({"more": ["1.50", "x"], "size": [None, 2.25], "tree": ["elm", None]})
        frame.to_parquet(path)
    else:
        mark = "," if ending == ".csv" else "\t"
        path.write_text("more,size,tree\n1.50,,elm\nx,2.250,?\n".replace(",", mark))
    given = read_gappy(path, codec, "?")
    assert [c.missing.tolist() for c in given.rows] == [[False, True], [True, False]] and given.labels is None
    new = [column("tree", np.array(["fir", "oak"])), column("size", np.array([7.5, 9.5]))]
    written = write_filled(given, tmp_path / "filled", new)
    whole = write_filled(given, tmp_path / "whole", new, False)
    if ending == ".parquet":
        found, every = pandas.read_parquet(written), pandas.read_parquet(whole)
        assert found.to_dict("list") == {"more": ["1.50", "x"], "size": [7.5, 2.25], "tree": ["elm", "oak"]}
        assert found["size"].dtype == frame["size"].dtype and every["tree"].tolist() == ["fir", "oak"]
    else:
        assert written.read_text().replace(mark, ",") == "more,size,tree\n1.50,7.5,elm\nx,2.250,oak\n"
        assert whole.read_text().replace(mark, ",") == "more,size,tree\n1.50,7.5,fir\nx,9.5,oak\n"


def test_what_cannot_be_filled_is_one_line(tmp_path: Path) -> None:
    codec, _ = Codec.fit([column("tree", np.array(["oak", "elm", "fir", "oak"] * 10)), column("size", np.arange(40.0))])
    for text, said in (
        ("tree,size\npalm,\n", "holds what the run's table cannot: tree 'palm'"),
        ("tree,size\noak,3\nNA,NA\n", "item 1 has nothing but gaps"),
        ("tree\noak\n", "column size of the run's table is not there"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_gappy(tmp_path / "t.csv", codec)


@pytest.mark.parametrize("entrywise", [True, False])
def test_known_entries_are_the_same_measurement_in_normalised_units(entrywise: bool) -> None:
    """Log-normal data: there the method that is exact for Gaussian data and linear measurements has the exact conditional law."""
    law = GaussianData(torch.zeros(2, dtype=torch.float64), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64))
    model = law.model(sde_gen.make_sde("vp"))
    rows = torch.exp(law.sample(100)).T
    transforms = Transforms.fit(rows, [("log",), ("log",)])
    model.normalizer = Normalizer(torch.zeros(2), torch.ones(2), dtype=torch.float64, transforms=transforms)
    settings = RestoreSettings(samples=400, steps=40, solver="dpm", batch=2000)
    run: Any = SimpleNamespace(model=model)
    about: Any = SimpleNamespace(shape=(2,))
    task = Task(run, about, Measurement(Mask(), Gaussian(0.0)), settings, True, entrywise)
    y = torch.tensor([[6.0, torch.nan], [torch.nan, 0.1]], dtype=torch.float64)
    found = task.solve(Problems(y, None), "mmps", 0).x
    assert float((found[[0, 1], :, [0, 1]] / torch.tensor([[6.0], [0.1]]) - 1).abs().max()) < 1e-3 or not entrywise
    hidden = torch.log(found[[0, 1], :, [1, 0]]).double()
    off = hidden.mean(1) - 0.8 * torch.log(torch.tensor([6.0, 0.1], dtype=torch.float64))
    right = bool((off.abs() < 4 * 0.6 / 20).all() and ((hidden.std(1) / 0.6 - 1).abs() < 0.15).all())
    assert right == entrywise, "in the data's own units the method is not exact"
