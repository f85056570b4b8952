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
    assert any("3 columns: " in note for note in dataset.notes) == any(letter in content for letter in "abc" if "numpy" not in content)


@pytest.mark.parametrize(("labels", "column"), [(["cat", "dog", "cat"], "kind"), (["3", "10", "3"], "kind"), (["1.0", "2", "1"], "1")])
def test_a_label_column(labels: list[str], column: str, tmp_path: Path) -> None:
    rows = "".join(f"{v[0]},{labels[i % 3]},{v[1]}\n" for i, v in enumerate(VALUES))
    (tmp_path / "t.csv").write_text("x,kind,y\n" + rows)
    dataset = load_dataset(tmp_path / "t.csv", label_column=column)
    assert dataset.shape == (2,) and dataset.classes == 2 and dataset.train_labels is not None
    assert "2 columns: x, y" in dataset.notes
    for item, label in zip(dataset.train, dataset.train_labels, strict=True):
        row = int(np.flatnonzero(VALUES[:, 0].astype(np.float32) == item[0].item())[0])
        assert int(label) == int(row % 3 == 1)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t.csv: no column 'c' for the labels; its columns are a, b"):
        load_dataset(tmp_path / "t.csv", label_column="c")
