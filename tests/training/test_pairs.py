"""CLIP in training: what it learns, that it can be killed at any step, and its files, hostile ones too."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sde_gen
from sde_gen.errors import CheckpointError
from sde_gen.pairs import CLIP, recall
from sde_gen.training import pairs
from sde_gen.training.pairs import CLIP_DESCRIPTION, ClipSettings, clip_extra, load_clip, save_clip, train_clip
from sde_gen.training.store import newest, write_version

COLOURS = {"red": (200.0, 30.0, 30.0), "green": (20.0, 180.0, 40.0), "blue": (30.0, 40.0, 220.0)}
PLACES = {"left": 0, "right": 4}
SMALL: dict[str, Any] = {
    "dims": 8,
    "image_options": {"width": 8, "stages": 2, "depth": 1},
    "text_options": {"width": 16, "depth": 1, "heads": 2, "buckets": 64},
    "progress": False,
    "device": "cpu",
}


def squares(count: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Squares of a colour on one side, and their captions."""
    generator = torch.Generator().manual_seed(seed)
    x, captions = 255 - 20 * torch.rand(count, 3, 8, 8, generator=generator), []
    for row in range(count):
        colour, place = list(COLOURS)[row % 3], list(PLACES)[row // 3 % 2]
        x[row, :, 2:6, PLACES[place] : PLACES[place] + 4] = torch.tensor(COLOURS[colour])[:, None, None]
        captions.append(f"a {colour} square on the {place}")
    return x, captions


def equal(a: CLIP, b: CLIP) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_pictures_find_their_captions_and_noise_takes_that_away() -> None:
    x, captions = squares(96)
    settings = ClipSettings(steps=40, batch=24, lr=8e-3, warmup=5, jitter=None, weight_decay=0.01)
    seen: list[dict[str, Any]] = []
    clip = train_clip(x, captions, settings, sde="vp", on_log=seen.append, **SMALL)
    held, told = squares(30, seed=1)
    texts = list(dict.fromkeys(captions))
    right = torch.tensor([[text == one for text in texts] for one in told])
    with torch.no_grad():
        found = recall(clip.embed_images(held) @ clip.embed_texts(texts).T, right)
        z = clip.normalizer.encode(held).float()
        sde = sde_gen.make_sde("vp")
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
        levels = []
        for t in (0.05, sde.t_max):
            alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
            levels.append(recall(clip.embed_states(alpha * z + sigma * noise, t) @ clip.embed_texts(texts).T, right).value)
    assert found.value >= 0.95 and levels[0] >= 0.95 and levels[1] < 0.6
    assert len(seen) == 40 and seen[0]["loss"] > seen[-1]["loss"] and set(seen[0]) == {"step", "loss", "scale"}
    assert not clip.training and not any(parameter.requires_grad for parameter in clip.parameters())


class Killed(Exception):
    pass


@pytest.mark.parametrize("sde", [None, "ve"])
def test_a_training_that_was_killed_goes_on_bit_for_bit(sde: str | None, tmp_path: Path) -> None:
    x, captions = squares(24)
    variants = [[caption, caption.removeprefix("a ")] for caption in captions]
    settings = ClipSettings(steps=8, batch=10, lr=5e-3, warmup=2)
    common: dict[str, Any] = {"sde": sde, "mirrored": torch.arange(24) % 2 == 0} | SMALL
    whole = train_clip(x, variants, settings, **common)

    def kill(entry: dict[str, Any]) -> None:
        if entry["step"] in (3, 6):
            raise Killed

    path = tmp_path / "clip"
    path.mkdir()  # as one that was killed before its first checkpoint leaves it
    for _ in range(2):
        with pytest.raises(Killed):
            train_clip(x, variants, settings, path=path, checkpoint_seconds=0, on_log=kill, **common)
    again = train_clip(x, variants, settings, path=path, checkpoint_seconds=0, **common)
    assert equal(again, whole)
    shown: list[Any] = []
    assert equal(train_clip(x, variants, settings, path=path, on_log=shown.append, **common), whole) and not shown  # it is done
    spent = clip_extra(path)
    assert spent["steps"] == 8 and spent["processor_seconds"] > 0 and spent["seconds"] > 0
    loaded = load_clip(path)
    assert equal(loaded, whole) and loaded.text.tokenizer.words == whole.text.tokenizer.words
    assert (loaded.sde is None) == (sde is None) and loaded.data_std == whole.data_std
    torch.testing.assert_close(loaded.embed_texts(["a red square"]), whole.embed_texts(["a red square"]))
    for changed, what in ((x + 1, "data"), (x, "settings")):
        with pytest.raises(CheckpointError, match=f"holds a CLIP of other {what}: give another directory"):
            train_clip(changed, variants, ClipSettings(steps=8 + (what == "settings"), batch=10, lr=5e-3, warmup=2), path=path, **common)


def test_the_clock_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    x, captions = squares(12)
    clock = iter(range(10_000))
    monkeypatch.setattr("sde_gen.training.pairs.time.monotonic", lambda: float(next(clock)))
    seen: list[Any] = []
    train_clip(x, captions, ClipSettings(steps=5000, seconds=20.0, batch=4), on_log=seen.append, **SMALL)
    train_clip(x, captions, ClipSettings(steps=3, seconds=1e6, batch=4), on_log=seen.append, **SMALL)
    assert [entry["step"] for entry in seen] == [1, 2, 3]  # the first ended long before its first entry, at step 50


def test_twins_are_found_by_their_captions() -> None:
    x, captions = squares(12)
    seen: list[Tensor] = []
    original = pairs.info_nce

    def noted(a: Tensor, b: Tensor, log_scale: Tensor, same: Tensor | None = None) -> Tensor:
        assert same is not None
        seen.append(same)
        return original(a, b, log_scale, same)

    pairs.info_nce = noted  # type: ignore[assignment]
    try:
        train_clip(x, captions, ClipSettings(steps=1, batch=12), **SMALL)
    finally:
        pairs.info_nce = original
    assert sorted(Counter(seen[0].tolist()).values()) == [2] * 6


@pytest.mark.parametrize(
    ("captions", "changes", "message"),
    [
        (["red"] * 5, {}, "one caption or more for each of at least two images is needed, got 5 for 6 images"),
        ([["red"]] * 5 + [[]], {}, "one caption or more for each of at least two images is needed, got 6 for 6 images"),
        ([" ."] * 6, {}, "6 captions have not a single word"),
        (["red"] * 6, {"sde": "vpp"}, "unknown SDE"),
    ],
)
def test_bad_data_are_one_line(captions: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train_clip(squares(6)[0], captions, ClipSettings(steps=1), **SMALL | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps must be a whole number of at least 1, got 0"),
        ("batch", 1, "batch must be a whole number of at least 2, got 1"),
        ("lr", float("nan"), "lr must be finite and not negative, got nan"),
        ("seconds", 0.0, "seconds must be positive, got 0.0"),
    ],
)
def test_bad_settings_are_one_line(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSettings(**{name: value})


def test_files_that_are_damaged_or_claim_much_are_one_line(tmp_path: Path) -> None:
    x, captions = squares(6)
    good = save_clip(train_clip(x, captions, ClipSettings(steps=1, batch=4), **SMALL), tmp_path / "good", extra={"why": "test"})
    version = newest(good)
    about = json.loads((version / CLIP_DESCRIPTION).read_text())
    assert about["extra"] == {"why": "test"} and not any(path.suffix in (".pt", ".pkl") for path in version.iterdir())
    changes: dict[str, dict[str, Any]] = {
        "not a CLIP of format": {"format": "other"},
        "image.blocks.0.norm_in.weight is of shape": {"image": about["image"] | {"width": 1 << 14}},
        "word.weight is of shape": {"text": about["text"] | {"words": ["red"]}},
        "unknown SDE": {"sde": {"name": "nothing", "settings": {}}},
        "must be a whole number": {"text": about["text"] | {"length": 10**9}},
        "KeyError: 'shape'": {"shape": None},
    }
    for number, (message, change) in enumerate(changes.items()):
        bad = {key: value for key, value in (about | change).items() if key != "shape" or value is not None}
        text = json.dumps(bad)

        def description(file: Path, text: str = text) -> None:
            file.write_text(text)

        def weights(file: Path) -> None:
            shutil.copyfile(version / "weights.safetensors", file)

        write_version(tmp_path / str(number), {CLIP_DESCRIPTION: description, "weights.safetensors": weights})
        with pytest.raises(CheckpointError, match=message) as caught:
            load_clip(tmp_path / str(number))
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_clip(tmp_path / "nothing")
