"""Gaps of a table as a condition: told the network, left out of everything else, and drawn again in samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_columns import table

import sde_gen
from sde_gen.commands.given_gaps import gaps_in_file
from sde_gen.commands.sample_job import _ROOT_OF_TWO, classes_by_shares
from sde_gen.conditions import ValidFeatures, fit_condition, make_condition, valid_entries, valid_of
from sde_gen.data.columns import Codec
from sde_gen.data.columns.codec import VALID, Column, read_asked
from sde_gen.data.columns.frames import of_columns, to_frame
from sde_gen.data.columns.gaps import Gaps, gaps_asked
from sde_gen.data.columns.patterns import KEY, MOST, patterns_of, valid_of_patterns

TOLD = ("income", "tree", "flag", "temperature", "gain")
OPTIONS: dict[str, Any] = {"network_options": {"width": 16, "depth": 1}, "steps": 3, "batch": 64, "progress": False}


def told_of_all() -> sde_gen.data.Dataset:
    return of_columns("t", table(), {}, gaps="condition")


def test_gaps_are_features_that_are_not_there_and_come_back() -> None:
    codec, lines = Codec.fit(table(), gaps="condition")
    codec = Codec.from_config(json.loads(json.dumps(codec.to_config())))
    assert tuple(name for name, masked in zip(codec.names, codec.masked, strict=True) if masked) == TOLD
    assert not any(isinstance(kind, Gaps) for kind in codec.kinds) and "" not in codec.kinds[codec.names.index("tree")].words  # type: ignore[attr-defined]
    assert sum("missing, which the condition 'valid' says" in line for line in lines) == 5
    features = codec.encode(table())
    for before, after, place in zip(table(), codec.decode(features), codec.places, strict=True):
        there = ~before.missing
        assert np.array_equal(np.isnan(features[:, place]).all(1), before.missing), before.name
        assert np.array_equal(before.missing, after.missing), before.name
        if before.values.dtype.kind == "U":
            assert np.array_equal(before.values, after.values)
        else:
            np.testing.assert_allclose(after.values[there], before.values[there], rtol=1e-14, atol=1e-14, err_msg=before.name)
    filled = np.where(np.isnan(features), 3.0, features)
    for one, other in zip(codec.decode(features), codec.decode(filled, ~np.isnan(features)), strict=True):
        assert np.array_equal(one.missing, other.missing)
    some = codec.log_q(features)
    each = np.stack([kind.log_q(filled[:, place]) for kind, place in zip(codec.kinds, codec.places, strict=True)], 1)
    gone = np.stack([column.missing for column in table()], 1)
    np.testing.assert_allclose(some, np.where(gone, 0.0, each).sum(1), rtol=1e-12)
    assert not np.allclose(some, each.sum(1), rtol=1e-6)
    mixed, _ = Codec.fit(table(), {"tree": {"missing": "condition"}, "flag": {"missing": "sample"}})
    assert [isinstance(kind, Gaps) for kind in mixed.kinds] == [name in ("income", "flag", "temperature", "gain") for name in mixed.names]
    assert mixed.masked.index(True) == mixed.names.index("tree") and sum(mixed.masked) == 1
    before = {key: value for key, value in Codec.fit(table())[0].to_config().items() if key != "masked"}
    assert Codec.from_config(before).masked == (False,) * 13


def test_what_lies_in_a_gap_changes_no_bit_of_training_likelihood_or_samples() -> None:
    data, other = told_of_all(), told_of_all()
    assert data.codec is not None and other.codec is not None
    valid = data.cond[VALID]
    assert valid.dtype == torch.bool and not bool(valid.all()) and bool(torch.isfinite(data.train).all())
    gone = np.concatenate([~part.all(1).numpy() for part in (valid, data.test_cond[VALID])])
    assert gone.mean() == pytest.approx(np.mean(np.any([column.missing for column in table()], 0)))
    ends = torch.where(valid, data.train, torch.nan).nan_to_num(-torch.inf).amax(0)
    other.train.copy_(torch.where(valid, data.train, ends))
    models = [sde_gen.train(one, network="mlp", **OPTIONS) for one in (data, other)]
    for one, two in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, two)
    model, rows = models[0], slice(20)
    assert model.normalizer is not None and isinstance(model.encoders[VALID], ValidFeatures)
    z = model.normalizer.encode(data.train)
    mean = torch.where(valid, z, 0).sum(0) / valid.sum(0)
    assert float(mean.abs().max()) < 0.05, "statistics are of what is there"
    how: dict[str, Any] = {"cond": {VALID: valid[rows]}, "rtol": 1e-3, "atol": 1e-3}
    holes = data.train[rows].masked_fill(~valid[rows], torch.nan)
    found = [sde_gen.log_likelihood(model, x, **how).log_prob for x in (data.train[rows], holes)]
    assert torch.equal(*found) and bool(torch.isfinite(found[0]).all())
    whole = sde_gen.log_likelihood(model, data.train[rows], **how | {"cond": {VALID: torch.ones_like(valid[rows])}}).log_prob
    assert torch.equal(whole != found[0], ~valid[rows].all(1))
    out = sde_gen.sample(model, (20, *data.shape), "ddim", steps=4, cond={VALID: valid[rows]})
    frame = to_frame(data.codec, out.x, valid[rows])
    for column, place in zip(data.codec.names, data.codec.places, strict=True):
        assert frame[column].isna().tolist() == (~valid[rows][:, place.start]).tolist(), column
    full = sde_gen.sample(model, (20, *data.shape), "ddim", steps=4)
    assert not to_frame(data.codec, full.x).isna().any(axis=None)
    gappy = valid[rows][int((~valid[rows].all(1)).int().argmax())]
    told = model.denoise(torch.zeros(2, *data.shape), 0.5, **{VALID: torch.stack((torch.ones_like(gappy), gappy))})
    known = [k for k in range(data.shape[0]) if bool(valid[:, k].all())]
    assert not torch.allclose(told[0, known], told[1, known], rtol=0, atol=1e-9), "the network is told"


def test_patterns_are_kept_with_their_shares_and_drawn_ones_where_there_are_many() -> None:
    data = told_of_all()
    assert data.codec is not None
    config = data.codec.to_config() | patterns_of(data.codec, data.cond[VALID])
    config = json.loads(json.dumps(config))
    assert sum(config[KEY].values()) == len(data.train) and all(len(pattern) == 5 for pattern in config[KEY])
    chosen = np.repeat(np.arange(len(config[KEY])), list(config[KEY].values()))
    again = valid_of_patterns(data.codec, config, chosen)
    assert sorted(map(tuple, again.tolist())) == sorted(map(tuple, data.cond[VALID].tolist()))
    both = 2 * classes_by_shares(0, 10_000, (1, 1)) + classes_by_shares(0, 10_000, (1, 1), _ROOT_OF_TWO)
    np.testing.assert_allclose(np.bincount(both) / 10_000, 0.25, atol=0.005, err_msg="classes and gaps are independent")
    rng = np.random.default_rng(0)
    wide = [Column(f"c{k}", np.where(gone := rng.random(3000) < 0.5, np.nan, rng.normal(size=3000)), gone) for k in range(14)]
    many = of_columns("wide", wide, {}, gaps="condition")
    assert many.codec is not None and sum(patterns_of(many.codec, many.cond[VALID])[KEY].values()) == MOST
    assert patterns_of(data.codec, None) == {} == patterns_of(Codec.fit(table())[0], data.cond[VALID])


def test_the_condition_is_of_the_entries_that_vary_and_masks_all() -> None:
    values = torch.tensor([[1, 1, 0], [1, 0, 1]]) > 0
    spec = fit_condition(VALID, values, ())
    assert (
        spec == {"kind": "valid_features", "size": 3, "gaps": [1, 2]} and valid_of({"a": {"kind": "numbers"}, VALID: spec}, {VALID: 5}) == 5
    )
    encoder = make_condition(VALID, spec, 8, ())
    assert encoder.layers[0].weight.shape == (8, 2) and encoder.missing(2, torch.device("cpu")).all()
    assert torch.equal(encoder(values), encoder(values.float())) and not torch.equal(*encoder(values))
    assert torch.equal(encoder.null(values), values)
    assert torch.equal(valid_entries({VALID: encoder}, {VALID: values.float()}), values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a mask of 0 and 1, got values 0 \.\. 2"):
        encoder.check(torch.tensor([[2.0, 0, 1]]))
    with pytest.raises(ValueError, match="leaves item 1 without a single valid entry"):
        encoder.check(torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="kind 'valid' is theirs"):
        make_condition(VALID, spec, 8, (4, 4))
    with pytest.raises(ValueError, match=r"gaps \[3\] of 3 entries; numbers from 0 to 2"):
        make_condition(VALID, spec | {"gaps": [3]}, 8, ())


def test_what_is_asked_of_gaps_and_what_is_refused(tmp_path: Path) -> None:
    assert gaps_asked("condition") == ("condition", None) and gaps_asked("sample=-9") == ("sample", "-9")
    assert gaps_asked("nan") == (None, "nan") and gaps_asked(-9.0) == (None, -9.0) and gaps_asked(None) == (None, None)
    with pytest.raises(ValueError, match="missing 'condition='; 'condition', for NaN"):
        gaps_asked("condition=")
    with pytest.raises(ValueError, match="column 'a': missing 'never'; sample or condition is allowed"):
        read_asked("t", {"a": {"missing": "never"}}, ["a"])
    frame = {"a": np.array([np.nan, 1, 2, -9, 5, 3.5] * 5), "b": np.array([1, np.nan, 2, 3, 4, 7.5] * 5)}
    found = sde_gen.load_dataset(frame, missing="condition=-9")
    assert float((~found.cond[VALID]).double().mean()) == pytest.approx(0.25, abs=0.06)
    with pytest.raises(ValueError, match="row 0 has nothing but gaps"):
        sde_gen.load_dataset({"a": np.array([np.nan, 1, 2] * 5), "b": np.array([np.nan, 1, 4.5] * 5)}, missing="condition")
    codec, _ = Codec.fit(table(), gaps="condition")
    np.save(tmp_path / "ones.npy", np.array([[1, 0, 1, 1, 1]]))
    given = gaps_in_file(codec, str(tmp_path / "ones.npy"), 7)
    places = dict(zip(codec.names, codec.places, strict=True))
    assert given.values.shape == (1, codec.width) and not given.values[0, places["tree"]].any() and given.values.sum() == codec.width - 4
    np.save(tmp_path / "two.npy", np.ones((2, 5)))
    np.save(tmp_path / "wide.npy", np.ones((1, 13)))
    for name, said in (
        ("two.npy", "it has 2 rows for 7 samples; one, or as many"),
        ("wide.npy", r"ones and zeros \(N, 5\) of income, tree, flag, temperature, gain are needed"),
        ("none.csv", "no such file; a table whose gaps"),
        ("a.png", "a table or a .npy file, whose gaps are those of the samples"),
    ):
        with pytest.raises(ValueError, match=said):
            gaps_in_file(codec, str(tmp_path / name), 7)
