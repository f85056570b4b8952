import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen import load_dataset
from sde_gen.data import Dataset
from sde_gen.data.write import DataDescription, form_of, write_npz, write_samples

X = torch.tensor([[-0.4, 3.25, 7.6], [1.6, -2.5, 12.4]])


def described(**changes: object) -> DataDescription:
    """Three columns, the outer ones of whole numbers."""
    about = DataDescription("t.csv", (3,), "float32", None, (True, False, True), (-5.0, 20.0))
    return replace(about, **changes)  # type: ignore[arg-type]


def write(path: Path, form: str, about: DataDescription, x: torch.Tensor, classes: np.ndarray | None = None) -> Path:
    values = about.finish(x, form)[0]
    parts = [(values[:1], None if classes is None else classes[:1]), (values[1:], None if classes is None else classes[1:])]
    write_samples(path, form, about, len(x), lambda: iter(parts), classes is not None)
    return path


def test_whole_numbers_are_found_column_by_column_and_not_where_float32_makes_them() -> None:
    ages = torch.arange(40.0)
    big = 1e9 + 1e6 * torch.rand(40, generator=torch.Generator().manual_seed(0))
    data = Dataset("x", torch.stack((ages, ages + 0.5, big, ages * 1e6), dim=1))
    assert DataDescription.of(data).whole == (True, False, False, True)
    wide = Dataset("x", torch.stack((1e9 + ages.double(), 1e9 + ages.double() / 3), dim=1))
    assert DataDescription.of(wide).whole == (True, False) and DataDescription.of(wide).dtype == "float64"
    images = Dataset("x", torch.randint(9, (8, 1, 4, 4)).float())
    assert DataDescription.of(images).whole == (True,)
    images.train[3, 0, 2, 1] += 0.25
    assert DataDescription.of(images).whole == (False,)


def test_rounding_and_clipping_are_done_where_the_data_ask_for_them_and_counted() -> None:
    values, touched = described().finish(X)
    np.testing.assert_array_equal(values, np.array([[0, 3.25, 8], [2, -2.5, 12]], dtype=np.float32))
    assert values.dtype == np.float32 and touched.tolist() == [4, 0]
    assert described().touched_line([4, 0], 2) == "rounded to whole numbers in the columns that hold such: 0, 2 (66.7 % of the values)"
    values, touched = described(levels=9, whole=(True, True, True)).finish(X)
    np.testing.assert_array_equal(values, [[0, 3, 8], [2, 0, 8]])
    assert values.dtype == np.uint8 and touched.tolist() == [6, 2], "-2.5 and 12.4 lie outside"
    values, touched = described(whole=(True, True, True)).finish(X)
    assert values.dtype == np.int64 and values[1, 1] == -2 and touched.tolist() == [6, 0], "no bound is known"
    values, touched = described(whole=(False, False, False)).finish(X)
    np.testing.assert_array_equal(values, X.numpy())
    assert touched.tolist() == [0, 0] and described(whole=(False,) * 3).touched_line([0, 0], 2) == ""


def test_whole_numbers_beyond_64_bits_are_no_integers(tmp_path: Path) -> None:
    whole = (True, True, True)
    huge = described(dtype="float64", whole=whole, value_range=(-1e20, 3e20))
    x = torch.tensor([[1e20, -2.5e20, 7.2], [3.0, 4e20, -1.0]], dtype=torch.float64)
    values, touched = huge.finish(x)
    assert values.dtype == np.float64 and values[0].tolist() == [1e20, -2.5e20, 7.0] and touched.tolist() == [1, 0]
    rows = np.loadtxt(write(tmp_path / "x.csv", "csv", huge, x), delimiter=",")
    np.testing.assert_array_equal(rows, values)
    astray = described(dtype="float64", whole=whole)  # within (-5, 20)
    values, touched = astray.finish(x)
    assert values.dtype == np.int64 and values[:, 1].tolist() == [-(2**53), 2**53] and touched.tolist() == [1, 3]
    assert "clipped to +-2^53 (50 % of the values)" in astray.touched_line(touched.tolist(), 2)


@pytest.mark.parametrize(("form", "mark"), [("csv", ","), ("tsv", "\t")])
def test_a_table_comes_back_under_its_own_header_with_the_labels_in_their_place(form: str, mark: str, tmp_path: Path) -> None:
    lines = [
        "id,city,where,n",
        *(f"{k / 7},{'north' if k % 4 else 'south, far'},{k},{k % 5}".replace("south, far", '"south, far"') for k in range(40)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = load_dataset(tmp_path / "t.csv", label_column="city")
    about = DataDescription.from_config(DataDescription.of(data).to_config())
    assert (about.columns, about.label_column, about.label_names) == (("id", "where", "n"), ("city", 1), ("north", "south, far"))
    assert about.label_counts is not None and sum(about.label_counts) == len(data.train) and about.label_counts[0] > about.label_counts[1]
    path = write(tmp_path / f"out.{form}", form, about, X, np.array([1, 0]))
    with path.open(newline="") as file:
        assert list(csv.reader(file, delimiter=mark)) == [
            ["id", "city", "where", "n"],
            [str(np.float32(-0.4)), "south, far", "3", "8"],
            ["1.6", "north", "-2", "12"],
        ]
    plain = write(tmp_path / f"plain.{form}", form, about, X)
    assert plain.read_text().splitlines()[0] == mark.join(["id", "where", "n"])


def test_a_table_without_a_header_gets_none_and_an_index_is_not_counted(tmp_path: Path) -> None:
    rows = [f"{k},{k / 3},a{k % 2},{k * 2}" for k in range(30)]
    (tmp_path / "plain.csv").write_text("\n".join(row.split(",", 1)[1] for row in rows))
    about = DataDescription.of(load_dataset(tmp_path / "plain.csv", label_column="1"))
    assert about.columns is None and about.label_column == (None, 1)
    assert write(tmp_path / "o.csv", "csv", about, X[:, :2], np.array([1, 0])).read_text().splitlines() == ["-0.4,a1,3", "1.6,a0,-2"]
    (tmp_path / "indexed.csv").write_text("\n".join([",x,kind,n", *rows]))
    about = DataDescription.of(load_dataset(tmp_path / "indexed.csv", label_column="kind"))
    assert about.columns == ("x", "n") and about.label_column == ("kind", 1)


def test_arrays_are_written_part_by_part(tmp_path: Path) -> None:
    about = described(label_names=("x", "yy"), label_counts=(3, 1))
    np.testing.assert_array_equal(np.load(write(tmp_path / "a.npy", "npy", about, X)), about.finish(X)[0])
    with np.load(write(tmp_path / "a.npz", "npz", about, X, np.array([1, 0]))) as arrays:
        assert sorted(arrays) == ["label", "x"] and arrays["label"].tolist() == ["yy", "x"]
        np.testing.assert_array_equal(arrays["x"], about.finish(X)[0])
    write_npz(tmp_path / "b.npz", X, None, about)
    with np.load(tmp_path / "b.npz") as arrays:
        assert list(arrays) == ["x"] and arrays["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("levels", "channels", "top", "back"),
    [
        (256, 3, 255, lambda v: v),
        (256, 1, 255, lambda v: v),
        (65536, 1, 65535, lambda v: v),
        (2, 1, 1, lambda v: v),
        (17, 1, 16, lambda v: v * 255 / 16),
    ],
)
def test_pictures_of_levels_come_back(levels: int, channels: int, top: int, back, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    x = torch.randint(top + 1, (12, channels, 5, 4), generator=torch.Generator().manual_seed(0)).float()
    x[0, 0, 0, :2] = torch.tensor([-3.0, top + 4.0])
    about = DataDescription("p", (channels, 5, 4), "float32", levels, (True,), (0.0, float(top)), None, None, ("a", "b/c"), (6, 6))
    assert about.finish(x + 0.2, "png")[1].tolist() == [x.numel(), 2]
    write(tmp_path / "p", "png", about, x + 0.2, np.arange(12) % 2)
    assert sorted(path.name for path in tmp_path.glob("p/*")) == ["a", "b_c"]
    data = load_dataset(tmp_path / "p")
    read = torch.cat((data.train, data.test)) if data.test is not None else data.train
    wanted = torch.from_numpy(np.rint(back(x.clamp(0, top).numpy())))
    assert read.shape == wanted.shape and torch.equal(*(v.double().flatten(1).sort(0).values for v in (read, wanted)))
    assert (tmp_path / "p" / "b_c" / "000001.png").exists() and not (tmp_path / "p" / "a" / "000001.png").exists()


def test_pictures_of_continuous_data_show_their_own_range() -> None:
    about = DataDescription("p", (1, 1, 3), "float32", None, (False,), (-1.0, 1.0))
    values, touched = about.finish(torch.tensor([[[[-1.0, 0.5, 1.5]]]]), "png")
    assert values.tolist() == [[[[0, 191, 255]]]] and touched[1] == 1
    assert "-1 .. 1 is 0 .. 255" in about.touched_line(touched.tolist(), 1, "png") and "33.3 %" in about.touched_line([2, 1], 1, "png")
    whole = replace(about, whole=(True,), value_range=(3.0, 250.0))
    assert whole.finish(torch.tensor([[[[3.2, 100.0, 300.0]]]]), "png")[0].tolist() == [[[[3, 100, 255]]]], "bytes are bytes"


def test_what_cannot_be_written_is_said() -> None:
    assert [form_of(out) for out in ("a.npy", "b/c.NPZ", "d.csv", "e.tsv", "faces", "v1.2/")] == ["npy", "npz", "csv", "tsv", "png", "png"]
    with pytest.raises(ValueError, match=r"cannot write \.xyz files; \.npy, \.npz"):
        form_of("a.xyz")
    images = replace(described(), shape=(5, 4, 4), whole=(True,))
    for about, form, message in (
        (images, "csv", "5x4x4 are no rows of a table"),
        (images, "png", "these images have 5"),
        (replace(images, shape=(3, 4, 4), levels=65536), "png", "16 bits"),
        (described(), "png", "no images"),
    ):
        with pytest.raises(ValueError, match=message):
            about.check(form)
    config = described().to_config()
    for change in ({"shape": [4]}, {"whole": [True]}, {"label_names": ["a"]}, {"dtype": "int8"}, {"other": 1}, {"levels": 1}):
        with pytest.raises(ValueError, match="describes no data"):
            DataDescription.from_config(config | change)
    with pytest.raises(ValueError, match="describes no data"):
        DataDescription.from_config(None)
