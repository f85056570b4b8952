"""New draws in the cells of a table's features: of the same rows, of the law of the encoding, anew for every batch of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from toy_columns import table

import sde_gen
from sde_gen.data import Source
from sde_gen.data.columns import Codec
from sde_gen.data.columns.frames import of_columns
from sde_gen.data.columns.kinds import Angle
from sde_gen.data.columns.redraw import Redraw
from sde_gen.training import TrainSettings, build_model, fit, read_state, save
from sde_gen.training.trainer import Trainer


def uniform(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_new_draws_are_of_the_same_rows_and_of_the_law_of_the_encoding() -> None:
    codec, _ = Codec.fit(table())
    before = torch.from_numpy(codec.encode(table()))
    kept = before.clone()
    after = Redraw(codec)(before, uniform(before.shape, 1))
    assert torch.equal(before, kept), "the training items are changed in place"
    for one, other in zip(codec.decode(before.numpy()), codec.decode(after.numpy()), strict=True):
        assert np.array_equal(one.missing, other.missing), one.name
        there = ~one.missing
        if one.values.dtype.kind == "f":
            np.testing.assert_allclose(one.values[there], other.values[there], rtol=1e-14, err_msg=one.name)
        else:
            assert np.array_equal(one.values[there], other.values[there]), one.name
    fresh = torch.from_numpy(codec.encode(table(), seed=5))
    for k, label in enumerate(codec.labels):
        drawn = fresh[:, k] != before[:, k]
        assert torch.equal(drawn, after[:, k] != before[:, k]), f"{label}: other entries are draws"
        if bool(drawn.any()):
            assert stats.ks_2samp(fresh[drawn, k].numpy(), after[drawn, k].numpy()).pvalue > 1e-3, label
            assert abs(float(torch.corrcoef(torch.stack(((before % 1)[drawn, k], (after % 1)[drawn, k])))[0, 1])) < 0.12 or _angle(codec, k)
    with np.errstate(all="raise"):
        assert bool(torch.isfinite(Redraw(codec)(before, torch.zeros_like(before))).all()), "a draw of exactly 0"


def _angle(codec: Codec, k: int) -> bool:
    return any(isinstance(kind, Angle) and place.start <= k < place.stop for kind, place in zip(codec.kinds, codec.places, strict=True))


def test_a_training_sees_other_draws_in_every_batch_and_goes_on_with_the_same_ones(tmp_path: Path) -> None:
    data = of_columns("t", table(), {}, split="tail")
    assert data.codec is not None
    redraw, settings = Redraw(data.codec), TrainSettings(steps=6, batch=64, warmup=0, evaluations=1)
    options = {"width": 16, "depth": 1}

    def model() -> sde_gen.ScoreModel:
        return build_model(data.train, network="mlp", network_options=options, codec=data.codec)

    def batches(x: torch.Tensor | Source, first: int, rows: int = 64) -> list[torch.Tensor]:
        trainer = Trainer(model(), x, settings, None, data.test, None, "cpu", redraw=redraw)
        trainer.step = first
        with trainer.running():
            assert trainer.batches is not None
            return [next(trainer.batches)[0] for _ in range(6 - first)]

    seen = batches(data.train[:64].clone(), 0)  # all items in each batch, in another order
    on_disk = Source("t", (data.shape[0],), lambda rows: data.train[rows].numpy(), np.arange(64), dtype=torch.float64)
    assert all(torch.equal(one, other) for one, other in zip(seen, batches(on_disk, 0), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(seen[3:], batches(data.train[:64].clone(), 3), strict=True))
    words = [k for k, label in enumerate(data.codec.labels) if "=" in label]
    numbers = data.codec.labels.index("phase (cos)") - 1
    for batch in seen[1:]:
        assert not set(batch[:, words[0]].tolist()) & set(seen[0][:, words[0]].tolist()), "a word's draw is seen again"
    dates = data.codec.labels.index("temperature")
    assert numbers >= 0 and len({*seen[0][:, dates].tolist()} & {*seen[1][:, dates].tolist()}) > 40, "a number is its own"
    whole = fit(model(), data.train, settings, held_out=data.test, progress=False, redraw=redraw)
    first = fit(model(), data.train, TrainSettings(**vars(settings) | {"steps": 3}), held_out=data.test, progress=False, redraw=redraw)
    plain = fit(model(), data.train, settings, held_out=data.test, progress=False)
    assert first.history and not torch.equal(*(next(run.raw.network.parameters()) for run in (whole, plain)))
    save(first.raw, tmp_path / "c", ema=first.model.network, state=first.state())
    rest = fit(model(), data.train, settings, held_out=data.test, progress=False, redraw=redraw, resume=read_state(tmp_path / "c"))
    assert rest.steps == 6
    trained = sde_gen.train(data, network="mlp", network_options=options, progress=False, **vars(settings))
    same = zip(trained.network.parameters(), whole.model.network.parameters(), strict=True)
    assert all(torch.allclose(one, other) for one, other in same), "sde_gen.train draws anew too"


@pytest.mark.parametrize("inner", ["positive", "fraction"])
def test_what_stands_in_for_a_missing_value_is_drawn_in_the_domain_of_its_kind(inner: str) -> None:
    rng = np.random.default_rng(0)
    gone = rng.random(3000) < 0.5
    values = np.exp(rng.normal(2, 1, 3000)) if inner == "positive" else rng.beta(2, 5, 3000)
    frame = {"a": np.where(gone, np.nan, values), "b": rng.normal(size=3000)}
    data = sde_gen.load_dataset(frame, columns={"a": inner})
    assert data.codec is not None
    found = Redraw(data.codec)(data.train, uniform(data.train.shape, 2))
    missing = data.train[:, 0] >= 1
    assert torch.equal(found[~missing, 1], data.train[~missing, 1]) and not bool((found[missing, 1] == data.train[missing, 1]).any())
    assert stats.ks_2samp(found[missing, 1].numpy(), data.train[missing, 1].numpy()).pvalue > 1e-3
    assert bool((found[:, 1] > 0).all()) and (inner == "positive" or bool((found[:, 1] < 1).all()))
