"""Degraded items are read with their gaps, and written again in the form that they came in."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data.degraded import read_degraded
from sde_gen.data.write import DataDescription

RNG = np.random.default_rng(0)
TABLE = DataDescription("t", (3,), "float64", None, (False, True, False), (-5.0, 90.0), ("a", "n", "b"), ("kind", 1), ("x", "y"), (5, 5))
DIGITS = DataDescription("digits", (1, 8, 8), "float32", 17, (True,), (0.0, 16.0))
COLOUR = DataDescription("faces", (3, 4, 5), "float32", 256, (True,), (0.0, 255.0))
FIELD = DataDescription("fields", (2, 4, 5), "float32", None, (False,), (-1.0, 3.0))


@pytest.mark.parametrize(("ending", "mark"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_a_table_comes_back_with_its_own_header_order_and_cells(tmp_path: Path, ending: str, mark: str) -> None:
    lines = ["# of May", "id,b,kind,n,a", "r1,1.250,x,7,", "r2,NaN,,3.0,0.10", "r3,-2e-3,y,NA,nan"]
    path = tmp_path / f"t{ending}"
    path.write_text("\n".join(lines).replace(",", mark))
    found = read_degraded(path, TABLE, (3,))
    assert found.labels == ("x", None, "y")
    np.testing.assert_array_equal(found.y.numpy(), [[math.nan, 7, 1.25], [0.1, 3, math.nan], [math.nan, math.nan, -2e-3]])
    full = torch.where(torch.isnan(found.y), torch.tensor([0.5, 41.6, 2.25], dtype=torch.float64), found.y)
    written = found.write(tmp_path / "out" / "mean", full)
    assert written == tmp_path / "out" / f"mean{ending}"
    rows = list(csv.reader(written.open(), delimiter=mark))
    assert rows == [
        ["id", "b", "kind", "n", "a"],
        ["r1", "1.250", "x", "7", "0.5"],
        ["r2", "2.25", "", "3.0", "0.10"],
        ["r3", "-2e-3", "y", "42", "0.5"],
    ]
    fractions = list(csv.reader(found.write(tmp_path / "sd", full, whole=False).open(), delimiter=mark))
    assert fractions[3][3] == "41.6"


def test_a_table_without_a_header(tmp_path: Path) -> None:
    plain = DataDescription("t", (2,), "float64", None, (False, False), (0.0, 1.0), None, (None, 0), (1, 2), (5, 5))
    (tmp_path / "t.txt").write_text("1 0.5 nan\n2 na 0.25\n")
    found = read_degraded(tmp_path / "t.txt", plain, (2,))
    assert found.labels == ("1", "2") and bool(torch.isnan(found.y).sum() == 2)
    assert found.write(tmp_path / "o", torch.full((2, 2), 0.75)).read_text() == "1 0.75 0.75\n2 0.75 0.75\n"
    (tmp_path / "t.csv").write_text("kind,p,q\n1,0.5,\n2,,0.25\n")
    named = read_degraded(tmp_path / "t.csv", plain, (2,))
    assert named.labels == ("1", "2") and int(torch.isnan(named.y).sum()) == 2, "words where numbers are due are a header"
    assert named.write(tmp_path / "o", torch.full((2, 2), 0.75)).read_text() == "kind,p,q\n1,0.75,0.75\n2,0.75,0.75\n"
    (tmp_path / "t.csv").write_text("1,0.5,x\n2,,0.25\n")
    with pytest.raises(ValueError, match="line 1, column '2' holds 'x'; a finite number or a gap is needed"):
        read_degraded(tmp_path / "t.csv", plain, (2,))
    (tmp_path / "t.txt").write_text("0.5,\n,0.25\n")
    assert read_degraded(tmp_path / "t.txt", plain, (2,)).labels is None


@pytest.mark.parametrize(
    ("about", "arranged", "measured"),
    [
        (DIGITS, lambda x: x, (1, 8, 8)),
        (DIGITS, lambda x: x[:, 0], (1, 8, 8)),
        (FIELD, lambda x: np.moveaxis(x, 1, -1), (2, 4, 5)),
        (COLOUR, lambda x: np.moveaxis(x, 1, -1), (3, 4, 5)),
    ],
)
@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_arrays_keep_their_axes_type_and_name(
    tmp_path: Path, about: DataDescription, arranged: Callable[[np.ndarray], np.ndarray], measured: tuple[int, ...], ending: str
) -> None:
    x = RNG.integers(0, 16, size=(6, *about.shape))
    for dtype in ("float32", "uint8"):
        if dtype == "uint8" and about is FIELD:
            continue
        values = arranged(x).astype(dtype)
        if dtype == "float32":
            values[2].flat[3] = np.nan
        path = tmp_path / f"y{ending}"
        np.save(path, values) if ending == ".npy" else np.savez(path, images=values)
        found = read_degraded(path, about, measured)
        assert found.y.dtype == torch.float64 and tuple(found.y.shape) == (6, *measured)
        np.testing.assert_array_equal(arranged(found.y.numpy()), values.astype(float))
        restored = np.where(np.isnan(found.y.numpy()), 7.4, found.y.numpy())
        back = np.load(found.write(tmp_path / "out", restored))
        back = back["images"] if ending == ".npz" else back
        whole = about.levels is not None
        assert back.dtype == dtype and back.shape == values.shape
        np.testing.assert_allclose(back, arranged(np.where(np.isnan(found.y.numpy()), 7 if whole else 7.4, found.y.numpy())), rtol=1e-6)
        spread = np.load(found.write(tmp_path / "sd", np.full((6, *about.shape), 0.25), whole=False))
        assert bool(((spread["images"] if ending == ".npz" else spread) == 0.25).all()), "fractions are kept"


def test_pictures_are_in_the_data_s_levels_and_keep_their_names(tmp_path: Path) -> None:
    for about, mode in ((DIGITS, "L"), (COLOUR, "RGB")):
        shape = about.shape[1:] if mode == "L" else (*about.shape[1:], 3)
        folder = tmp_path / mode / "in"
        pictures = {}
        for name in ("x/b.png", "a.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            levels = RNG.integers(0, about.levels or 0, size=shape)
            pictures[name] = np.rint(levels * (255 / ((about.levels or 0) - 1))).astype(np.uint8)
            Image.fromarray(pictures[name]).save(folder / name)
        found = read_degraded(folder, about, about.shape)
        assert found.labels == (None, "x") and float(found.y.max()) <= (about.levels or 0) - 1
        assert torch.allclose(found.y, found.y.round(), atol=0.05)
        out = found.write(tmp_path / mode / "out", found.y)
        for name, picture in pictures.items():
            np.testing.assert_array_equal(np.asarray(Image.open(out / name)), picture)
    one = read_degraded(tmp_path / "RGB" / "in" / "a.png", COLOUR, (3, 4, 5))
    assert tuple(one.y.shape) == (1, 3, 4, 5)
    grey = tmp_path / "grey.png"
    Image.fromarray(RNG.integers(256, size=(4, 5), dtype=np.uint8)).save(grey)
    found = read_degraded(grey, COLOUR, (1, 4, 5))
    assert (found.write(tmp_path / "coloured", torch.zeros(1, 3, 4, 5)) / "grey.png").exists()
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(grey)
    field = DataDescription("f", (1, 1, 2), "float32", None, (False,), (-1.0, 3.0))
    assert read_degraded(grey, field, (1, 1, 2)).y.flatten().tolist() == [-1, 3]


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "word.csv").write_text("a,n,b\n1,2,oops\n")
    (tmp_path / "short.csv").write_text("a,n,b\n1,2,3\n1,2\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "none.csv").write_text("a,n,b\n")
    np.save(tmp_path / "wide.npy", np.zeros((4, 9, 9)))
    np.save(tmp_path / "inf.npy", np.full((4, 8, 8), np.inf))
    np.save(tmp_path / "words.npy", np.array(["a"]))
    (tmp_path / "x.parquet").write_text("")
    (tmp_path / "folder").mkdir()
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(tmp_path / "small.png")
    for name, about, message in (
        ("gone.csv", TABLE, "no such file or folder"),
        ("word.csv", TABLE, "line 2, column 'b' holds 'oops'"),
        ("short.csv", TABLE, "line 3 has 2 cells, the first has 3"),
        ("other.csv", TABLE, "lacks column n of t"),
        ("empty.csv", TABLE, "empty"),
        ("none.csv", TABLE, "a header but no rows"),
        ("word.csv", DIGITS, "Tables are for vectors"),
        ("wide.npy", DIGITS, "items of shape (9, 9); (1, 8, 8) is needed"),
        ("inf.npy", DIGITS, "256 infinite value(s)"),
        ("words.npy", DIGITS, "numbers (Boolean, integer or floating) are allowed"),
        ("x.parquet", TABLE, "not a known kind of file"),
        ("folder", DIGITS, "no images"),
        ("small.png", DIGITS, "an image of shape 1x3x3; 1x8x8 is needed"),
        ("small.png", TABLE, "no images"),
    ):
        with pytest.raises(ValueError) as caught:
            read_degraded(tmp_path / name, about, about.shape)
        assert message in str(caught.value) and "\n" not in str(caught.value), name
