"""Tables of words, gaps and zeros from files and frames: read, trained on, sampled and written as they came."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import sde_gen
from sde_gen.data.columns import Codec
from sde_gen.data.columns.frames import to_frame
from sde_gen.data.toy_tables import adult_table, rain_table
from sde_gen.data.write import DataDescription, write_samples

COUNT = 60


def lines(rain: bool = True) -> list[list[str]]:
    """A header and rows: an index without a name, a word with a comma, gaps of two kinds, zeros and a label."""
    rng = np.random.default_rng(0)
    found = [["", "city", "rain", "days", "kind", "wind"]]
    for k in range(COUNT):
        amount = str(round(rng.gamma(1, 5), 3)) if k % 3 else "0"
        wind = "NA" if k % 11 == 5 else str(round(rng.normal(), 5))
        found.append([f"r{k}", ["Zürich, ZH", "Bern"][k % 5 == 0], amount if rain else "1.5", str(int(rng.poisson(3))), "xy"[k % 2], wind])
    return found


def write(path: Path, rows: list[list[str]], mark: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    return path


def cells_of(path: Path, mark: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=mark))


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_of_words_and_gaps_is_inferred_and_written_back_as_it_came(ending: str, tmp_path: Path) -> None:
    mark = "," if ending == "csv" else "\t"
    data = sde_gen.load_dataset(write(tmp_path / f"t.{ending}", lines(), mark), label_column="kind")
    assert data.codec is not None and data.codec.names == ("city", "rain", "days", "wind") and data.classes == 2
    assert any("no table of numbers alone (line 2, column 'city' holds" in note for note in data.notes)
    assert any("zero_inflated" in note and "33.3 % exact zeros" in note for note in data.notes)
    assert data.test is not None and data.train.dtype == torch.float64 and len(data.train) + len(data.test) == COUNT
    about = DataDescription.from_config(DataDescription.of(data).to_config())
    x, labels = torch.cat((data.train, data.test)).numpy(), torch.cat((data.train_labels, data.test_labels)).numpy()  # type: ignore[arg-type]
    values, touched = about.finish(x, ending)
    write_samples(
        tmp_path / f"o.{ending}", ending, about, len(x), lambda: iter([(values[:25], labels[:25]), (values[25:], labels[25:])]), True
    )
    header, *rows = cells_of(tmp_path / f"o.{ending}", mark)
    assert header == ["city", "rain", "days", "kind", "wind"] and not touched.any()
    given = [[cell if i != 1 else str(float(cell)) for i, cell in enumerate(row[1:])] for row in lines()[1:]]
    assert sorted(rows) == sorted(given)


def test_tables_of_numbers_are_read_as_before_unless_kinds_are_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [["a", "b"], *[[str(k), str(k % 7 - 0.5)] for k in range(COUNT)]])
    plain = sde_gen.load_dataset(path)
    assert plain.codec is None and plain.train.dtype == torch.float32 and not any("column " in note for note in plain.notes)
    (tmp_path / "kinds.yaml").write_text("a: {kind: integer, transform: standard}\nb: drop\n")
    asked = sde_gen.load_dataset(path, columns=tmp_path / "kinds.yaml")
    assert asked.codec is not None and asked.codec.names == ("a",) and asked.shape == (1,)
    assert asked.notes[1:3] == ("column    a: integer, standard: as asked", "column    b: dropped, as asked")
    assert sde_gen.load_dataset(path, columns="infer").codec is not None
    assert sde_gen.load_dataset(path, columns={"b": "category"}).shape == (1 + 7,)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ((7, 3, "three"), {}, "t.csv: line 2, column 'city' holds"),  # what keeps it from being numbers is said first
        (
            (7, 3, "three"),
            {"columns": "infer"},
            r"t.csv: line 8, column 'days' holds 'three' where 59 of 60 cells are numbers; .*days: category",
        ),
        ((7, 3, "inf"), {"columns": "infer"}, "t.csv: line 8, column 'days' holds 'inf'"),
        (None, {"columns": {"town": "category"}}, "t.csv: columns names 'town', which the table does not have"),
        (None, {"columns": {"city": "number"}}, "t.csv: column 'city' holds words"),
        (None, {"columns": "none.yaml"}, "t.csv: columns='none.yaml': no such file"),
        (None, {"columns": dict.fromkeys(("city", "rain", "days", "kind", "wind"), "drop")}, "columns drops all of"),
    ],
)
def test_bad_tables_of_kinds_are_one_line(change, options: dict, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = lines()
    if change is not None:
        rows[change[0]][change[1]] = change[2]
    with pytest.raises(ValueError, match=message) as caught:
        sde_gen.load_dataset(write(tmp_path / "t.csv", rows), **options)
    assert "\n" not in str(caught.value)


def test_few_lines_and_stray_words_stay_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2, column 'city' holds"):
        sde_gen.load_dataset(write(tmp_path / "t.csv", lines()[:15]))
    numbers = [["a", "b"], *[[str(k), str(k / 7)] for k in range(COUNT)]]
    numbers[30][1] = "n.d."
    with pytest.raises(ValueError, match=r"line 31, column 'b' holds 'n.d.'.*finite numbers are needed"):
        sde_gen.load_dataset(write(tmp_path / "t.csv", numbers))
    with pytest.raises(ValueError, match="columns='infer' is for tables"):
        np.save(tmp_path / "a.npy", np.zeros((30, 2)))
        sde_gen.load_dataset(tmp_path / "a.npy", columns="infer")


def test_a_marked_gap_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [["a", "b"], *[[str(k % 9), "-9999" if k % 4 == 0 else str(round((k + 0.5) / 7, 6))] for k in range(COUNT)]]
    data = sde_gen.load_dataset(write(tmp_path / "t.csv", rows), missing=-9999, columns="infer")
    assert data.codec is not None and data.test is not None
    cells = data.codec.cells(torch.cat((data.train, data.test)).numpy())
    assert sorted(zip(*cells, strict=True)) == sorted(map(tuple, rows[1:]))


def frame() -> pandas.DataFrame:
    table = adult_table(300, 0)
    found = pandas.DataFrame({key: np.where(v == "", None, v) if v.dtype.kind == "U" else v for key, v in table.items()})
    found["education"] = found["education"].astype("int16")
    found["sex"] = found["sex"].astype("category")
    found["rich"] = found.pop("income") == ">50K"
    return found


def test_a_frame_comes_back_in_its_own_types() -> None:
    before = frame()
    data = sde_gen.load_dataset(before)
    assert isinstance(data.codec, Codec) and data.test is not None
    after = to_frame(data.codec, torch.cat((data.train, data.test)))
    assert after.dtypes.astype(str).to_dict() == before.dtypes.astype(str).to_dict()
    keys = ["weight", "age"]
    pandas.testing.assert_frame_equal(
        after.sort_values(keys).reset_index(drop=True), before.sort_values(keys).reset_index(drop=True), check_categorical=False
    )


def test_parquet_in_and_out(tmp_path: Path) -> None:
    before = frame()
    before.to_parquet(tmp_path / "t.parquet")
    data = sde_gen.load_dataset(tmp_path / "t.parquet", label_column="sex", conditions=("age",), columns={"weight": "drop"})
    assert data.codec is not None and data.label_names == ("female", "male") and set(data.cond) == {"age"} and data.test is not None
    about = DataDescription.from_config(DataDescription.of(data).to_config())
    x, labels = torch.cat((data.train, data.test)).numpy(), torch.cat((data.train_labels, data.test_labels)).numpy()  # type: ignore[arg-type]
    ages = torch.cat((data.cond["age"], data.test_cond["age"])).numpy()
    beside = {"age": lambda first, last: ages[first:last]}
    write_samples(tmp_path / "o.parquet", "parquet", about, len(x), lambda: iter([(x, labels)]), True, beside)
    after = pandas.read_parquet(tmp_path / "o.parquet")
    assert list(after.columns) == [name for name in before.columns if name != "weight"]
    assert (
        after["education"].dtype == np.int16
        and after["rich"].dtype == bool
        and after["occupation"].isna().sum() == before["occupation"].isna().sum()
    )
    for name in ("age", "gain", "hours"):
        np.testing.assert_array_equal(np.sort(after[name]), np.sort(before[name]))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad.parquet: cannot be read as a parquet file") as caught:
        sde_gen.load_dataset(tmp_path / "bad.parquet")
    assert "\n" not in str(caught.value)


def test_the_absence_of_a_package_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"t.parquet: pandas and pyarrow are needed.*pip install pandas pyarrow"):
        sde_gen.load_dataset(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({"a": [1.0, 2], "b": [1.0]}, {}, ValueError, "columns of one length are needed, got a 2, b 1"),
        ({"a": np.zeros((3, 2))}, {}, ValueError, r"column 'a' has shape \(3, 2\)"),
        ({"a": [1.0, np.inf]}, {}, ValueError, "column 'a' holds infinite"),
        ({"a": ["x", 3.0]}, {}, ValueError, "column 'a' holds 3.0 beside words"),
        ({"a": np.array(["2020-01-01"] * 3, dtype="datetime64[D]")}, {}, ValueError, "column 'a' is of type datetime64"),
        ({"a": [1.0, 2]}, {"label_column": "b"}, ValueError, "no column 'b'"),
        ({"a": [1.0, 2]}, {"size": 3}, ValueError, "a table in memory: size=3 is for images"),
        ({"a": [1.0, 2]}, {"window": 3}, ValueError, "a table in memory: window=3 is for series"),
        (3, {}, TypeError, "got int"),
    ],
)
def test_bad_tables_in_memory_are_one_line(table, options: dict, error: type, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        sde_gen.load_dataset(table, **options)


def test_a_table_trains_and_samples_from_python_and_the_checkpoint_keeps_the_transforms(tmp_path: Path) -> None:
    data = sde_gen.load_dataset(rain_table(300, 0), columns={"wind": "positive"})
    settings = {"steps": 3, "batch": 32, "network_options": {"width": 8, "depth": 1}, "progress": False}
    model = sde_gen.train(data, **settings)
    assert model.normalizer is not None and data.codec is not None
    sde_gen.save(model, tmp_path / "m")
    again = sde_gen.load(tmp_path / "m")
    x = sde_gen.sample(again, (40, *data.shape), "heun", steps=4, progress=False).x
    assert torch.equal(x, sde_gen.sample(model, (40, *data.shape), "heun", steps=4, progress=False).x) and x.dtype == torch.float64
    by_name = {column.name: column.values for column in data.codec.decode(x.numpy())}
    assert by_name["rain_north"].min() >= 0 and by_name["wind"].min() > 0
    bound = sde_gen.log_likelihood(model, data.train[:5], rtol=1e-2, atol=1e-2).log_prob.numpy() - data.codec.log_q(data.train[:5].numpy())
    assert np.isfinite(bound).all()
    other = sde_gen.train(write(tmp_path / "t.csv", lines()), **settings)
    assert other.normalizer is not None and not other.normalizer.affine  # type: ignore[union-attr]
