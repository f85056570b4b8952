"""`sde-gen tokens` from end to end at toy size: text and images of levels, reuse, filling in, files, and bad input in one line."""

import json

import numpy as np
import pytest

from sde_gen.commands import tokens
from sde_gen.commands.cli import main
from sde_gen.data.text import load_text, ngram_bits
from sde_gen.tokens import sample_tokens

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


def test_filling_in_takes_the_network_that_is_there_by_whatever_flags_it_was_trained(text, capsys):
    other = ["--train-steps", "7", "--train-seconds", "99", "--lr", "0.5", "--batch", "3"]
    flags = ["tokens", "--data", str(text / "night.txt"), "--out", str(text / "run"), *QUICK, *other]
    assert main([*flags, "--infill", "a d_rk"]) == 0
    out = capsys.readouterr().out
    assert "trained" not in out
    assert (text / "run" / "samples" / "infilled.txt").read_text().count("rk") == 2
    assert main(flags) == 2  # what is measured is of these flags alone
    assert main([*flags, "--length", "10", "--infill", "a d_rk"]) == 2  # and windows of another length are other items
    assert "holds a network of length 12" in capsys.readouterr().err


def test_all_are_asked_for_the_same_symbols(tmp_path, capsys):
    rare = "".join(chr(0x4E00 + k) for k in range(300))  # more than the alphabet holds
    (tmp_path / "rare.txt").write_text("It was a dark night. " * 30 + rare + "It was a night. " * 5 + rare[200:] + "\n" * 20)
    assert main(["tokens", "--data", str(tmp_path / "rare.txt"), "--out", str(tmp_path / "run"), *QUICK]) == 0
    bound = json.loads((tmp_path / "run" / "metrics.json").read_text())["bound"]
    held_out = load_text(tmp_path / "rare.txt", 12)
    read = [held_out.alphabet.decode(held_out.alphabet.encode(part)) for part in (held_out.text, held_out.held_out)]
    assert bound["unknown"] == pytest.approx(sum(a != b for a, b in zip(read[1], held_out.held_out, strict=True)) / len(read[1]))
    assert bound["unknown"] > 0.1
    assert bound["five_gram"] == pytest.approx(ngram_bits(*read))
    assert bound["five_gram"] < ngram_bits(held_out.text, held_out.held_out) - 0.1  # which tells rare ones apart
    assert "of none of the 256 symbols" in capsys.readouterr().out


@pytest.mark.parametrize("held_out", [None, np.arange(12) % 3])
def test_classes_of_held_out_images_are_theirs_or_none(tmp_path, capsys, monkeypatch, held_out):
    x = np.random.default_rng(0).integers(0, 256, (52, 1, 4, 4), dtype=np.uint8)
    parts = {"train": x[:40], "test": x[40:], "train_labels": np.repeat(np.arange(4), 10)}
    if held_out is not None:
        parts["test_labels"] = held_out
    np.savez(tmp_path / "x.npz", **parts)
    flags = ["tokens", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run"), *QUICK, "--labels"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert ("held-out items have no classes" in out) == (held_out is None)
    sample = ["sample", "--run", str(tmp_path / "run"), "--samples", "3", "--no-progress", "--overwrite", "--out", str(tmp_path / "x.npy")]
    told = []

    def drawn(model, count, *others, **options):  # two steps of training are too few for a class to be seen in the samples
        told.append(others[3])
        return sample_tokens(model, count, *others, **options)

    monkeypatch.setattr(tokens, "sample_tokens", drawn)
    assert main([*sample, "--label", "3"]) == 0
    assert main(sample) == 0
    assert told[0]["label"].tolist() == [3, 3, 3]
    assert told[1] is None
    for more, message in (
        (["--label", "9"], "--label 9: the classes are 0, 1, 2, 3"),
        (["--guidance", "2"], "--guidance pushes towards a class: --label names it"),
        (["--label", "1", "--guidance", "nan"], "--guidance must be finite"),
        (["--cond", "label=1"], "--cond is not for a network of symbols"),
        (["--prompt", "cat"], "--prompt is not for a network of symbols"),
        (["--batch-size", "0"], "batch_size must be a whole number of at least 1, got 0"),
    ):
        capsys.readouterr()
        assert main([*sample, *more]) == 2
        assert message in capsys.readouterr().err


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
        (["--data", "night.txt", "--infill", "a d\u2603_k", "--process", "absorbing"], None),
        (["--data", "night.txt", "--process", "uniform", "--infill", "a_"], "--infill is for a process whose masks"),
        (["--data", "moons"], "holds no images of whole numbers"),
        (["--infill", "a_"], "--infill is for text"),
        (["--data", "night.txt", "--infill", "a dark"], "--infill: 'a dark' has no _"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
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
