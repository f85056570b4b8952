"""Captions on the command line: a folder and its captions through `run`, `sample --prompt`, `score` and `clip`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import TINY_RUN, Command

import sde_gen
from sde_gen.commands.item_files import read_items
from sde_gen.conditions import Text
from sde_gen.data.captions import text_tensor
from sde_gen.data.write import DataDescription
from sde_gen.training import read_extra
from sde_gen.training.pairs import load_clip

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 220)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty small pictures of a colour in a folder, and their captions beside it, of which one is empty."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    lines = ["file,caption"]
    for row in range(40):
        colour = list(COLOURS)[row % 3]
        pixels = np.clip(np.array(COLOURS[colour]) + generator.integers(-20, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{row:02d}.png")
        lines.append(f"{row:02d}.png," + ("" if row == 7 else f'"a {colour} thing, number {row}"'))
    (tmp_path / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


SAMPLE = ("sample", "--run", "runs/pictures-vp", "--no-progress", "--solver", "ddim", "--steps", "3")


def arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as found:
        return dict(found)


def test_from_a_folder_to_samples_of_a_prompt(pictures: Path, sde_gen_command: Command) -> None:
    small = ["--set", "data.text={width: 16, depth: 1, heads: 2}"]
    code, out, err = sde_gen_command("run", "--data", "pictures", "--captions", "captions.csv", *TINY_RUN, *small)
    assert code == 0, err
    assert any("captions of captions.csv, 39 different ones" in line and "not known of 1 of 40" in line for line in out)
    model = sde_gen.load(pictures / "runs" / "pictures-vp")
    encoder = model.encoders["caption"]
    assert isinstance(encoder, Text) and encoder.options["width"] == 16 and "red" in encoder.tokenizer.words
    with torch.no_grad():  # so short a training has left all that follows the conditions near zero
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    checkpoint = pictures / "runs" / "pictures-vp" / "checkpoint"
    sde_gen.save(model, checkpoint, extra=read_extra(checkpoint))
    kept = arrays(next((pictures / "runs" / "pictures-vp" / "solvers").glob("*/samples.npz")))
    assert kept["caption"].dtype.kind == "U" and set(kept["caption"]) - {""} and all("thing" in text for text in kept["caption"] if text)

    code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "a.npz", "--prompt", "a green thing", "--guidance", "2")
    assert code == 0, err
    assert "condition caption=a green thing" in out and not any("in no training caption" in line for line in out)
    found = arrays(pictures / "a.npz")
    assert found["caption"].tolist() == ["a green thing"] * 4 and found["x"].shape == (4, 3, 8, 8)
    code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "b.npz", "--cond", "caption=a red thing")
    assert code == 0 and not np.array_equal(arrays(pictures / "b.npz")["x"], found["x"])

    (pictures / "prompts.txt").write_text("a red thing\n\na blue thing ❤\nzxqwv", encoding="utf-8")
    code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "c.npz", "--prompt", "prompts.txt")
    assert code == 0, err
    assert "warning   caption: ❤, zxqwv: in no training caption, read by their letters alone" in out
    lines = arrays(pictures / "c.npz")
    assert lines["caption"].tolist() == ["a red thing", "", "a blue thing ❤", "zxqwv"]
    code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "d.npz", "--prompt", "")
    assert code == 0 and "condition caption is not given: samples are of all values" in out
    np.testing.assert_allclose(arrays(pictures / "d.npz")["x"][1], lines["x"][1], atol=1e-2)
    code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "e.npz", "--prompt", "red thing " * 500)
    assert code == 0 and not err and any("1,000 words, of which the first 16 are read" in line for line in out)

    for flags, message in (
        (("--prompt", "short.txt"), "--cond caption=short.txt: short.txt: cannot be read"),
        (("--prompt", "prompts.txt", "--samples", "3"), "it has 4 lines for 3 samples; one, or as many, are needed"),
        (("--prompt", "red", "--cond", "caption=blue"), "condition 'caption' is given twice"),
        (("--guidance", "2"), "towards what? --cond NAME=VALUE says it, of caption"),
    ):
        code, out, err = sde_gen_command(*SAMPLE, "--samples", "4", "--out", "f.npz", *flags)
        assert code == 2 and len(err) == 1 and message in err[0], err

    about = DataDescription.from_config(read_extra(checkpoint)["data_description"])
    items = read_items(pictures / "c.npz", about, model.encoders, (), None)  # as `score` reads them
    assert items.absent == [] and torch.equal(items.cond["caption"], encoder.check(text_tensor(lines["caption"].tolist())))


def test_a_network_without_captions_takes_no_prompt(pictures: Path, sde_gen_command: Command) -> None:
    assert sde_gen_command("run", "--data", "pictures", *TINY_RUN)[0] == 0
    code, _, err = sde_gen_command(*SAMPLE, "--samples", "2", "--out", "a.npz", "--prompt", "red")
    assert code == 2 and len(err) == 1 and "no condition 'caption'; this network was trained without conditions" in err[0]
    for flags, message in (
        (("--data", "pictures", "--captions", "nowhere.csv"), "nowhere.csv: no such file or folder"),
        (("--data", "digits", "--captions", "captions.csv"), "'digits' takes no captions: for the user's own files"),
        (
            ("--data", "pictures", "--captions", "captions.csv", "--set", "data.text={depths: 3}"),
            "unknown option depths of condition",
        ),
        (("--data", "pictures", "--captions", "captions.csv", "--set", "data.text={vocabulary: v.txt}"), "v.txt: cannot be read"),
    ):
        code, _, err = sde_gen_command("run", *flags, *TINY_RUN, "--out", "other")
        assert code == 2 and len(err) == 1 and message in err[0], err


CLIP = ("clip", "--data", "pictures", "--captions", "captions.csv", "--batch", "8", "--no-progress")


def test_clip_is_trained_measured_and_asked(pictures: Path, sde_gen_command: Command) -> None:
    code, out, err = sde_gen_command(*CLIP, "--steps", "3", "--find", "a green thing", "--find", "red")
    assert code == 0, err
    place = pictures / "runs" / "pictures-clip"
    found = json.loads((place / "clip.json").read_text())
    assert found["pictures"]["R@1"]["queries"] in (3, 4) and found["captions"]["R@10"]["value"] == 1
    assert "among 39 captions" in found["pictures"]["what"] and found["pictures"]["chance"] == pytest.approx(1 / 39)
    assert (place / "find.png").stat().st_size > 1000 and any(line.startswith("pictures  R@1") for line in out)
    clip = load_clip(place / "checkpoint")
    assert clip.sde is None and "green" in clip.text.tokenizer.words
    again = sde_gen_command(*CLIP, "--steps", "3")
    assert again[0] == 0 and [line for line in again[1] if "R@1" in line] == [line for line in out if "R@1" in line]
    code, out, err = sde_gen_command(*CLIP, "--steps", "2", "--noisy", "vp")
    assert code == 0 and load_clip(pictures / "runs" / "pictures-noisy-clip" / "checkpoint").sde is not None
    for flags, message in (
        (("--steps", "4"), "holds a CLIP of other settings: give another directory, or remove it"),
        (("--steps", "0"), "steps must be a whole number of at least 1, got 0"),
        (("--steps", "3", "--noisy", "vpp"), "unknown SDE 'vpp'"),
        (("--steps", "3", "--find", " ."), "--find: text 0 has no words"),
        (("--steps", "3", "--data", "digits"), "'digits' takes no captions"),
    ):
        code, _, err = sde_gen_command(*CLIP, *flags)
        assert code == 2 and len(err) == 1 and message in err[0], err
    code, _, err = sde_gen_command("clip", "--data", "digits")
    assert code == 2 and "data 'digits' has no captions in memory; --captions names those of a folder" in err[0]
