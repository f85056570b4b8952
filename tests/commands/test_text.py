"""`sde-gen text` at toy size on a folder of captioned pictures: trained once, used again, judged; bad input in one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.commands import text
from sde_gen.commands.cli import main
from sde_gen.training.pairs import load_clip

QUICK = ["--seconds", "4", "--steps", "2", "--samples", "1", "--no-progress", "--device", "cpu"]
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every part, each trained for the least time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(text, "PIXELS", {"patch": 8, "width": 8, "multipliers": [1], "attention": []})
    place = tmp_path_factory.mktemp("text")
    photos = place / "photos"
    photos.mkdir()
    rows = ["file,caption"]
    for number in range(24):
        name = list(COLOURS)[number % 4]
        Image.new("RGB", (20, 16), COLOURS[name]).save(photos / f"{number}.png")
        rows.append(f'{number}.png,"a {name} sheet, paper, number {number}"')
    (place / "captions.csv").write_text("\n".join(rows))
    of_data = ["--data", str(photos), "--captions", str(place / "captions.csv"), "--image-size", "16"]
    QUICK.extend(of_data)
    flags = ["--prompt", "a green heart, in the style of noto", "--prompt", "zzyzx \U0001f49a", "--strength", "1", "--strength", "3"]
    assert main(["text", "--out", str(place / "run"), *QUICK, *flags]) == 0
    yield place / "run"
    patch.undo()


def test_each_prompt_is_drawn_by_each_method_and_judged(run, capsys):
    numbers = json.loads((run / "text.json").read_text())
    for method in text.METHODS:
        for strength in (1, 3):
            ranks = numbers[f"{method} {strength}"]["rank"]
            assert len(ranks) == 2
            assert all(1 <= rank <= 26 for rank in ranks)
    assert (run / "text.png").stat().st_size > 0
    assert {path.name for path in run.iterdir() if path.is_dir()} >= {"clip", "judge", "noisy-clip", "glide", "decoder", "prior"}
    assert main(["text", "--out", str(run), *QUICK, "--prompt", "zzyzx", "--method", "unclip", "--strength", "1"]) == 0
    out = capsys.readouterr().out
    assert "reusing   the network in" in out
    assert "zzyzx: not in the training captions" in out


def test_variations_of_a_picture(run, tmp_path):
    Image.fromarray(np.full((50, 40, 4), 200, dtype=np.uint8), "RGBA").save(tmp_path / "grey.png")
    assert main(["text", "--out", str(run), *QUICK, "--like", str(tmp_path / "grey.png"), "--strength", "2"]) == 0
    assert (run / "like.png").stat().st_size > 0


def test_a_network_of_other_settings_is_refused(run, capsys):
    assert main(["text", "--out", str(run), *QUICK, "--prompt", "cat", "--seed", "5"]) == 2
    assert "holds a" in capsys.readouterr().err


def test_a_decoder_of_another_clip_is_refused(run, capsys, monkeypatch):
    monkeypatch.setattr(text, "_signature", lambda clip: "another")  # as of a CLIP that was trained anew
    assert main(["text", "--out", str(run), *QUICK, "--prompt", "cat", "--method", "unclip", "--strength", "1"]) == 2
    error = capsys.readouterr().err
    assert "holds a network of clip" in error
    assert f"removing {run / 'decoder'} replaces it" in error


def test_the_signature_of_a_clip_is_that_of_its_weights(run):
    clip = load_clip(run / "clip" / "checkpoint", device="cpu")
    before = text._signature(clip)
    assert before == text._signature(load_clip(run / "clip" / "checkpoint", device="cpu"))
    with torch.no_grad():
        next(clip.parameters()).add_(1e-3)
    assert text._signature(clip) != before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --prompt TEXT"),
        (["--prompt", " "], "--prompt ' ' says nothing"),
        (["--prompt", "cat", "--prompt", "...!"], "--prompt '...!' says nothing"),
        (["--prompt", "cat", "--like", "picture.png"], "give one of the two"),
        (["--prompt", "cat", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--prompt", "cat", "--out", "file"], "file is a file: --out takes a directory"),
        (["--prompt", "cat", "--samples", "0"], "--samples must be at least 1, got 0"),
        (["--prompt", "cat", "--strength", "inf"], "--strength must be finite"),
        (["--prompt", "cat", "--seconds", "0"], "--seconds must be positive"),
        (["--prompt", "cat", "--data", "digits"], "is no set of captioned images"),
        (["--like", "nowhere.png"], "--like nowhere.png: it is not there"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["text", "--no-progress", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
