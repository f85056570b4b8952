from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import Dataset, item_shape, load_dataset
from sde_gen.data.reading import Reading


def rows_in(part: torch.Tensor) -> set[int]:
    """The rows of the series that windows hold: their first channel is the number of the row."""
    return set(part[:, 0].flatten().int().tolist())


def check_windows(data: Dataset, length: int, stride: int) -> None:
    for part in (data.train, data.test):
        starts = part[:, 0, 0].sort().values
        assert bool((part[:, 0] == part[:, 0, :1] + torch.arange(length)).all()) and bool((starts.diff() % stride == 0).all())
    assert not rows_in(data.train) & rows_in(data.test)


@pytest.mark.parametrize(("length", "stride"), [(8, 1), (8, 3), (8, None), (5, 9)])
def test_windows_of_a_series_never_straddle_the_split(tmp_path: Path, length: int, stride: int | None):
    random = np.random.default_rng(0)
    series = np.stack([np.arange(400.0), 1e5 + random.normal(size=400)], 1)
    np.save(tmp_path / "s.npy", series)
    data = load_dataset(tmp_path / "s.npy", window=length, stride=stride)
    assert data.shape == (2, length) == item_shape(str(tmp_path / "s.npy"), Reading(window=length))
    check_windows(data, length, stride or length)
    count = (360 - length) // (stride or length) + 1
    assert len(data.train) == count and min(rows_in(data.test)) == 360
    first = data.train[data.train[:, 0, 0] == 0][0]
    np.testing.assert_allclose(first[1], series[:length, 1], rtol=1e-6)
    assert any(f"{count:,} training and" in note and "no window has rows of both parts" in note for note in data.notes)
    np.save(tmp_path / "one.npy", np.arange(400))
    np.savetxt(tmp_path / "s.csv", series, delimiter=",", header="t,x", comments="")
    assert rows_in(load_dataset(tmp_path / "one.npy", window=length, stride=stride).train) == rows_in(data.train)
    of_table = load_dataset(tmp_path / "s.csv", window=length, stride=stride)
    assert torch.equal(of_table.train, data.train) and of_table.columns is None


def test_windows_stay_inside_their_group_and_take_numbers_along(tmp_path: Path):
    lines, station = ["t,x,station,wind"], []
    for k in range(600):  # three stations, whose rows take turns
        station.append("abc"[k % 3])
        lines.append(f"{k},{(k * 37) % 11},{station[-1]},{k / 2}")
    (tmp_path / "s.csv").write_text("\n".join(lines))
    for split, held in ((None, 1), ("tail", 3)):
        data = load_dataset(tmp_path / "s.csv", window=10, stride=4, group="station", conditions=["wind"], split=split)
        for part, cond in ((data.train, data.cond["wind"]), (data.test, data.test_cond["wind"])):
            assert bool((part[:, 0].diff() == 3).all())  # one station's rows alone
            assert cond.shape == (len(part), 1, 10) and torch.equal(cond[:, 0], part[:, 0] / 2)
        assert not rows_in(data.train) & rows_in(data.test)
        assert len({row % 3 for row in rows_in(data.test)}) == held
    assert data.cond_columns == {}


def test_bad_windows_are_one_line(tmp_path: Path):
    np.save(tmp_path / "s.npy", np.random.default_rng(0).normal(size=(40, 2)))
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(40, 1, 9, 9)))
    (tmp_path / "t.csv").write_text("a,kind\n" + "".join(f"{k},{'uv'[k % 2]}\n" for k in range(40)))
    (tmp_path / "pictures").mkdir()
    for name, options, words in (
        ("s.npy", {"window": 50}, "a series of 40 rows has no window of 50"),
        ("s.npy", {"window": 1}, "window 1; a whole number of at least 2"),
        ("s.npy", {"window": 4, "stride": 0}, "stride 0; a whole number of at least 1"),
        ("s.npy", {"stride": 3}, "stride=3 is of windows"),
        ("s.npy", {"window": 4, "split": "random"}, "split 'random' with windows; 'tail'"),
        ("images.npy", {"window": 4}, r"windows are of a series \(T,\) or \(T, C\)"),
        ("t.csv", {"window": 4, "label_column": "kind"}, "rows of a series have labels"),
        ("t.csv", {"window": 4, "conditions": ["kind"]}, "condition 'kind' is of classes"),
        ("pictures", {"window": 4}, "is for series"),
        ("digits", {"window": 4}, "no window"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            load_dataset(name if name == "digits" else tmp_path / name, **options)
        assert "\n" not in str(error.value)
