"""Captions beside images: tables and text files in encodings that say what they are, and faults in one line with all offenders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import load_dataset
from sde_gen.data.captions import MOST_TEXT, is_texts, texts_of
from sde_gen.data.folders import load_images

NAMES = [f"{kind}/{number}.png" for kind in ("cat", "owl") for number in range(15)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty images, whose first pixel says which one each is."""
    for row, name in enumerate(NAMES):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(row).integers(0, 256, (6, 6), dtype=np.uint8)
        pixels[0, 0] = row
        Image.fromarray(pixels).save(file)
    return tmp_path / "pictures"


def caption(row: int) -> str:
    return f"the {NAMES[row].split('/')[0]} of number {row}, Grüße"


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def table(path: Path, header: str | None = "file,caption", encoding: str = "utf-8", rows: range = range(30)) -> Path:
    body = [f'{NAMES[row]},"{caption(row)}"' for row in reversed(rows)]
    return write(path, [*([header] if header else []), *body], encoding)


def check(folder: Path, path: Path, in_memory: int = 1 << 30) -> None:
    """Each image has its own caption, wherever the split and the order put it."""
    data = load_images(folder, captions=path, in_memory=in_memory)
    assert data.texts == ("caption",) and data.test is not None and len(data.test) == 3
    parts = [(data.test, data.test_cond["caption"]), (data.train, data.cond["caption"])]
    if data.source is not None:
        whole = data.source_cond["caption"]
        assert isinstance(whole, torch.Tensor)
        parts.append((data.source.tensor(), whole))
    for images, captions in parts:
        assert texts_of(captions) == [caption(int(image[0, 0, 0])) for image in images]
    (note,) = [note for note in data.notes if "caption" in note]
    assert note.startswith(f"condition 'caption': captions of {path.name}, 30 different ones, such as 'the cat of number ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("header", ["file,caption", "FILE_NAME,text", None])
def test_a_table_of_captions(folder: Path, tmp_path: Path, header: str | None, encoding: str) -> None:
    check(folder, table(tmp_path / "captions.csv", header, encoding))


def test_images_that_stay_on_disk(folder: Path, tmp_path: Path) -> None:
    check(folder, table(tmp_path / "captions.csv"), in_memory=600)


def test_other_ways_to_write_the_same(folder: Path, tmp_path: Path) -> None:
    tabs = write(
        tmp_path / "c.tsv", ["score\ttext\timage", *(f"3\t{caption(row)}\t./{NAMES[row].removesuffix('.png')}" for row in range(30))]
    )
    check(folder, tabs)
    texts = tmp_path / "texts"
    for row, name in enumerate(NAMES):
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        write((texts / name).with_suffix(".txt"), [caption(row), ""], "utf-16" if row % 2 else "utf-8")
    check(folder, texts)
    for row, name in enumerate(NAMES):  # beside the images themselves
        write((folder / name).with_suffix(".txt"), [caption(row)])
    check(folder, folder)


def test_names_alone_do_where_they_say_it_all(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (4, 4), dtype=np.uint8)).save(tmp_path / "p" / name)
    data = load_dataset(tmp_path / "p", captions=write(tmp_path / "c.csv", ["a,one", "b.png,two", "c,three"]))
    assert sorted(texts_of(data.cond["caption"])) == ["one", "three", "two"]


def test_gaps_are_not_known_and_long_captions_are_cut(folder: Path, tmp_path: Path) -> None:
    rows = [f"{name},{'' if row % 3 == 0 else 'x' * 5000 if row == 1 else ' two  words '}" for row, name in enumerate(NAMES)]
    rows[6] = NAMES[6]  # a line without its second cell
    data = load_dataset(folder, captions=write(tmp_path / "c.csv", ["file,caption", *rows]))
    texts = [*texts_of(data.cond["caption"]), *texts_of(data.test_cond["caption"])]
    assert sorted(set(texts)) == ["", "two words", "x" * MOST_TEXT] and texts.count("") == 10
    assert any("2 different ones" in note and "not known of 10 of 30 images" in note for note in data.notes)
    assert f"of 1 captions longer than {MOST_TEXT} bytes the first ones are kept" in data.notes


@pytest.mark.parametrize(
    ("lines", "encoding", "message"),
    [
        (
            ["file,caption", *(f"{name},x" for name in NAMES[2:])],
            "utf-8",
            "no caption for cat/0.png, cat/1.png; one caption for each",
        ),
        ([*(f"{name},x" for name in NAMES), "dog/1.png,x", "7.png,y"], "utf-8", "captions of no image: dog/1.png, 7.png;"),
        ([*(f"{name},x" for name in [*NAMES, "cat/3.png"])], "utf-8", "more than one caption of cat/3.png"),
        ([*(f"{name},x" for name in NAMES[1:]), "dog/1.png,x"], "utf-8", "no caption for cat/0.png; captions of no image: dog/1.png"),
        ([*(f"{name},Grüße" for name in NAMES)], "latin-1", r"captions.csv: it is not UTF-8 \(byte 0xfc in line 1\); save it as UTF-8"),
        (
            ["file,title", *(f"{name},x" for name in NAMES)],
            "utf-8",
            "its header is file, title; a column of file, .* one of caption",
        ),
        ([*(name for name in NAMES)], "utf-8", "too few columns in line 1, 2, 3, .*; file and caption are needed"),
        ([*(f'{name},"x' for name in NAMES)], "utf-8", "cannot be read as a table"),
        ([""], "utf-8", "it is empty; a line for each image is needed"),
        ([*(f"{name}," for name in NAMES)], "utf-8", "all 30 are empty; at least one caption is needed"),
    ],
)
def test_faults_are_one_line_that_names_all_offenders(folder: Path, tmp_path: Path, lines: list[str], encoding: str, message: str) -> None:
    path = write(tmp_path / "captions.csv", lines, encoding)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(folder, captions=path)
    assert "\n" not in str(caught.value) and "captions.csv" in str(caught.value)


def test_what_is_not_there_or_of_other_data_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere.csv", "nowhere.csv: no such file or folder"), ("empty", "no .txt file in this folder")):
        with pytest.raises(ValueError, match=message):
            load_dataset(folder, captions=tmp_path / path)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 3)))
    with pytest.raises(ValueError, match=r"captions='c\.csv' is for images in a folder or archive"):
        load_dataset(tmp_path / "a.npy", captions="c.csv")
    many = write(tmp_path / "many.csv", [*(f"{name},x" for name in NAMES), *(f"no{number}.png,x" for number in range(80))])
    with pytest.raises(ValueError, match=r"no49\.png, \.\.\. \(80 in all\)"):
        load_dataset(folder, captions=many)


def test_what_texts_are() -> None:
    assert is_texts(["a", ""]) and is_texts(("a",)) and is_texts(np.array(["a", "b"])) and is_texts(np.array(["a", "b"], dtype=object))
    for value in ("a", [], ["a", 1], [1], np.array([1, 2]), np.array([["a"]]), None):
        assert not is_texts(value)
    with pytest.raises(ValueError, match=r"texts are uint8 \(N, longest\), UTF-8 filled up with zeros, got torch.float32 of shape \(3,\)"):
        texts_of(torch.zeros(3))
