"""`sde-gen tokens` from end to end at toy size: text and images of levels, reuse, filling in, files, and bad input in one line."""

import json

import numpy as np
import pytest

from sde_gen.commands.cli import main

TEXT = "It was a dark and stormy night;\nthe rain fell in torrents.\r\n" * 12 + "É\tend\n"
QUICK = ["--length", "12", "--train-steps", "2", "--batch", "4", "--draws", "2", "--samples", "2", "--no-progress", "--device", "cpu"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A run on text."""
    place = tmp_path_factory.mktemp("text")
    (place / "night.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())  # with a byte order mark
    assert main(["tokens", "--data", str(place / "night.txt"), "--out", str(place / "run"), *QUICK]) == 0
    return place


def test_a_run_on_text_leaves_samples_and_numbers(text, capsys):
    numbers = json.loads((text / "run" / "metrics.json").read_text())
    assert numbers["bound"]["unit"] == "bits per character"
    assert numbers["bound"]["held_out"]["value"] == pytest.approx(np.log2(len(set(TEXT)) - 1), rel=0.2)  # of two steps
    assert numbers["bound"]["five_gram"] < 1.5 < numbers["bound"]["gzip"]  # the held-out part says the same again
    samples = (text / "run" / "samples" / "ancestral.txt").read_text().split("\n\n")
    assert set("".join(samples)) <= set(TEXT) | {"�"}
    assert main(["tokens", "--data", str(text / "night.txt"), "--out", str(text / "run"), *QUICK]) == 0
    assert "reusing" in capsys.readouterr().out


def test_what_is_given_is_kept_and_the_rest_filled_in(text):
    flags = ["--infill", "a d_rk a_d s", "--sampler", "confidence", "--steps", "2"]
    assert main(["tokens", "--data", str(text / "night.txt"), "--out", str(text / "run"), *QUICK, *flags]) == 0
    for line in (text / "run" / "samples" / "infilled.txt").read_text().rstrip("\n").split("\n\n"):
        assert len(line) == 12
        assert (line[:3], line[4:8], line[9:]) == ("a d", "rk a", "d s")


def test_samples_of_text_are_written_as_text(text, capsys):
    out = text / "new.txt"
    flags = ["sample", "--run", str(text / "run"), "--out", str(out), "--samples", "3", "--solver", "first_hitting", "--steps", "3"]
    assert main([*flags, "--no-progress"]) == 0
    assert len(out.read_text()) >= 3 * 12
    assert main([*flags, "--no-progress"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_digits_are_seventeen_symbols(tmp_path, capsys):
    flags = ["--labels", "--sampler", "confidence", "--steps", "2", "--out", str(tmp_path / "run"), *QUICK]
    assert main(["tokens", *flags, "--label", "3", "--guidance", "2"]) == 0
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["bound"]["unit"] == "bits/dim"
    assert numbers["bound"]["held_out"]["items"] == 297
    assert (tmp_path / "run" / "samples" / "confidence.png").stat().st_size > 0
    assert main(["sample", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "x.npy"), "--samples", "2", "--no-progress"]) == 0
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (2, 1, 8, 8)
    assert x.dtype == np.uint8
    assert x.max() <= 16
    capsys.readouterr()
    assert main(["tokens", *flags, "--label", "x"]) == 2
    assert capsys.readouterr().err.strip() == "sde-gen: --label x: the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.txt"], "nowhere.txt: it is not there"),
        (["--data", "latin.txt"], "latin.txt is no UTF-8 text: byte 0xe9 in line 2"),
        (["--data", "short.txt"], "too few for windows of 12"),
        (["--data", "empty.txt"], "too few for windows of 12"),
        (["--data", "zeros.txt"], "it holds zero bytes"),
        (["--data", "night.txt", "--labels"], "--labels is for images"),
        (["--data", "night.txt", "--length", "1"], "--length must be at least 2, got 1"),
        (["--data", "night.txt", "--infill", "far too long a text"], "the given text has 19 characters"),
        (["--data", "night.txt", "--infill", "a d\u2603rk", "--process", "absorbing"], None),
        (["--data", "night.txt", "--process", "uniform", "--infill", "a_"], "--infill is for a process whose masks"),
        (["--data", "moons"], "holds no images of whole numbers"),
        (["--infill", "a_"], "--infill is for text"),
        (["--guidance", "2"], "--guidance needs a network that is told classes"),
        (["--draws", "0"], "--draws must be at least 1, got 0"),
        (["--dropout", "1"], "dropout must be a number in [0, 1), got 1.0"),
    ],
)
def test_bad_input_gets_one_line(text, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "night.txt").write_text(TEXT)
    (tmp_path / "latin.txt").write_bytes("caf\ncaf\u00e9\n".encode("latin-1") * 40)
    (tmp_path / "short.txt").write_text("It was.")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "zeros.txt").write_bytes(b"a\0b" * 100)
    code = main(["tokens", *QUICK, *flags])
    if message is None:
        assert code == 0  # the snowman is read as what is not known
        return
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_another_network_in_the_same_place_is_refused(text, capsys):
    flags = ["tokens", "--data", str(text / "night.txt"), "--out", str(text / "run"), *QUICK, "--process", "uniform"]
    assert main(flags) == 2
    assert "holds a network of process 'absorbing'" in capsys.readouterr().err
