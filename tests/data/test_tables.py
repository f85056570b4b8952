from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import load_dataset

VALUES = np.random.default_rng(0).normal(size=(30, 3)).round(4)


def text(mark: str, header: str = "", values: np.ndarray = VALUES) -> str:
    return header + "".join(mark.join(str(v) for v in row) + "\n" for row in values)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", text(",")),
        ("t.csv", text(",", "a,b,c\n")),
        ("t.csv", text(";", "a;b;c\n")),
        ("t.csv", text(",", '"the first, of three",2019,c\n')),
        ("T.CSV", "\ufeff" + text(",", "a,b,c\n").replace("\n", "\r\n")),
        ("t.tsv", text("\t", "a\tb\tc\n")),
        ("t.txt", text(" ", "# numpy.savetxt\n")),
        ("t.txt", text("\t")),
        ("t.txt", "\n" + text(" , ") + "\n\n"),
    ],
)
def test_delimiters_and_headers(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    dataset = load_dataset(tmp_path / name)
    assert dataset.shape == (3,) and dataset.test is not None and dataset.train_labels is None
    both = torch.cat((dataset.train, dataset.test))
    assert torch.equal(both.sort(0).values, torch.from_numpy(VALUES).float().sort(0).values)
    named = any(letter in content for letter in "abc" if "numpy" not in content)
    assert dataset.notes[0].startswith(f"read as 30 rows of 3 columns{': ' if named else ' '}")
    assert dataset.notes[0].endswith("(axes NC; float64, continuous)")


@pytest.mark.parametrize(("labels", "column"), [(["cat", "dog", "cat"], "kind"), (["3", "10", "3"], "kind"), (["1.0", "2", "1"], "1")])
def test_a_label_column(labels: list[str], column: str, tmp_path: Path) -> None:
    rows = "".join(f"{v[0]},{labels[i % 3]},{v[1]}\n" for i, v in enumerate(VALUES))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)
    dataset = load_dataset(tmp_path / "t.csv", label_column=column)
    assert dataset.shape == (2,) and dataset.classes == 2 and dataset.train_labels is not None
    assert dataset.notes[0] == "read as 30 rows of 2 columns: x, y (axes NC; float64, continuous)"
    for item, label in zip(dataset.train, dataset.train_labels, strict=True):
        row = int(np.flatnonzero(VALUES[:, 0].astype(np.float32) == item[0].item())[0])
        assert int(label) == int(row % 3 == 1)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t.csv: no column 'c' for the labels; its columns are a, b"):
        load_dataset(tmp_path / "t.csv", label_column="c")


INDICES = {
    "pandas": [str(i) for i in range(30)],
    "R": [f'"{i + 1}"' for i in range(30)],
    "filtered": [str(3 * i + 5) for i in reversed(range(30))],
    "words": [f"sample {i}" for i in range(30)],
}


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_without_a_name_is_no_feature(index: str, name: str, tmp_path: Path) -> None:
    rows = "".join(f"{i},{v[0]},{k % 2},{v[1]}\n" for k, (i, v) in enumerate(zip(INDICES[index], VALUES, strict=True)))
    (tmp_path / "t.csv").write_text(f"{name},x,kind,y\n{rows}")
    dataset = load_dataset(tmp_path / "t.csv", label_column="kind")
    assert dataset.shape == (2,) and dataset.classes == 2 and dataset.test is not None
    assert torch.equal(torch.cat((dataset.train, dataset.test)).sort(0).values, torch.from_numpy(VALUES[:, :2]).float().sort(0).values)
    assert any("the first column (" in note and "is left out" in note for note in dataset.notes)
    assert "rows of 2 columns: x, y" in dataset.notes[0]


def test_a_first_column_without_a_name_that_holds_data_is_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text(",", ",b,c\n"))
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.shape == (3,) and "rows of 3 columns: , b, c" in dataset.notes[0]
    assert dataset.test is not None
    assert torch.equal(torch.cat((dataset.train, dataset.test)).sort(0).values, torch.from_numpy(VALUES).float().sort(0).values)
    (tmp_path / "t.csv").write_text(",b\n" + "1,2\n1,3\n" * 9)
    assert load_dataset(tmp_path / "t.csv").shape == (2,), "repeated numbers are no index"


@pytest.mark.parametrize(
    ("mark", "cells", "dropped"),
    [("nan", ["", "NA", "nan", "null"], 4), ("-9999", ["-9999", "-9999.0", "-9999"], 3), ("?", ["?", "?"], 2), (-9999, ["-9999"], 1)],
)
def test_lines_with_missing_cells_are_left_out(mark: str | float, cells: list[str], dropped: int, tmp_path: Path) -> None:
    rows = [[str(v) for v in row] for row in VALUES[:, :2]]
    for i, cell in enumerate(cells):
        rows[4 * i][i % 2] = cell
    (tmp_path / "t.csv").write_text("a,b,kind\n" + "".join(f"{a},{b},{i % 2}\n" for i, (a, b) in enumerate(rows)))
    dataset = load_dataset(tmp_path / "t.csv", label_column="kind", missing=mark)
    assert dataset.test is not None and len(dataset.train) + len(dataset.test) == 30 - dropped and dataset.train_labels is not None
    assert any(f"{dropped} of 30 items are left out" in note for note in dataset.notes)
    for item, label in zip(dataset.train, dataset.train_labels, strict=True):
        assert int(label) == int(np.flatnonzero(VALUES[:, 0].astype(np.float32) == item[0].item())[0]) % 2


@pytest.mark.parametrize("cell", ["", "NA", "nan"])
def test_a_hole_names_the_flag_that_settles_it(cell: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{cell},4\n")
    with pytest.raises(ValueError, match=r"t.csv: line 3, column 'a' holds .*--missing nan"):
        load_dataset(tmp_path / "t.csv")


def test_a_column_that_looks_like_labels_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,Class\n" + "".join(f"{v[0]},{i % 3}\n" for i, v in enumerate(VALUES)))
    assert any(
        "column 'Class' is read as a number" in note and "--label-column Class" in note for note in load_dataset(tmp_path / "t.csv").notes
    )
    assert not any("--label-column" in note for note in load_dataset(tmp_path / "t.csv", label_column="Class").notes)
    (tmp_path / "t.csv").write_text("a,species\n" + "".join(f"{v[0]},iris\n" for v in VALUES))
    notes = load_dataset(tmp_path / "t.csv").notes  # words are kinds
    assert any("column 'species' is part of the data" in note and "--label-column species" in note for note in notes)


def test_columns_far_from_zero_keep_every_value(tmp_path: Path) -> None:
    x = -234567 + 0.02 * np.random.default_rng(0).normal(size=(300, 2))
    (tmp_path / "t.csv").write_text("".join(f"{a!r},{b!r}\n" for a, b in x.tolist()))
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.train.dtype == torch.float64 and len(dataset.train[:, 0].unique()) == 270
    (tmp_path / "t.csv").write_text("".join(f"{100_000_000 + i % 2}\n" for i in range(40)))
    assert sorted(load_dataset(tmp_path / "t.csv").train.unique().tolist()) == [1e8, 1e8 + 1], "not constant"


@pytest.mark.parametrize("index", [True, False])
def test_the_header_that_pandas_gives_to_an_array_is_no_item(index: bool, tmp_path: Path) -> None:
    rows = "".join((f"{i}," if index else "") + ",".join(map(str, row)) + "\n" for i, row in enumerate(VALUES))
    (tmp_path / "t.csv").write_text(("," if index else "") + "0,1,2\n" + rows)
    dataset = load_dataset(tmp_path / "t.csv")
    assert dataset.shape == (3,) and dataset.notes[0].startswith("read as 30 rows of 3 columns: 0, 1, 2 ")


def test_a_line_without_a_label_is_refused_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,kind\n" + "".join(f"{v[0]},{'' if i == 4 else i % 2}\n" for i, v in enumerate(VALUES)))
    with pytest.raises(ValueError, match=r"t.csv: line 6, column 'kind' holds no label; .*--missing nan"):
        load_dataset(tmp_path / "t.csv", label_column="kind")
    dataset = load_dataset(tmp_path / "t.csv", label_column="kind", missing="nan")
    assert dataset.classes == 2 and dataset.test is not None and len(dataset.train) + len(dataset.test) == 29
    for kinds in ("01", "ab"):
        labels = ["-9999" if i == 4 else "-9999.0" if i == 7 else kinds[i % 2] for i in range(30)]
        (tmp_path / "t.csv").write_text("a,kind\n" + "".join(f"{v[0]},{label}\n" for v, label in zip(VALUES, labels, strict=True)))
        dataset = load_dataset(tmp_path / "t.csv", label_column="kind", missing=-9999)
        assert dataset.classes == 2 and dataset.test is not None and len(dataset.train) + len(dataset.test) == 28
