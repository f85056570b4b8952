from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import load_dataset
from sde_gen.data.anomalies import overlap, remarks
from sde_gen.data.source import array_source

RNG = np.random.default_rng(0)


def windows(length: int, stride: int, count: int = 60, channels: int | None = None) -> np.ndarray:
    series = RNG.normal(size=(channels or 1, stride * count + length)).astype(np.float32)
    found = np.stack([series[:, stride * i : stride * i + length] for i in range(count)])
    return found if channels else found[:, 0]


@pytest.mark.parametrize(("length", "stride"), [(16, 1), (16, 8), (16, 14), (24, 5)])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_windows_that_overlap_are_seen(length: int, stride: int, channels: int | None) -> None:
    series = windows(length, stride, channels=channels)
    assert overlap(array_source(series, "x")) == overlap(array_source(series[::-1], "x")) == (stride, length)


def test_windows_of_pictures_and_of_several_series() -> None:
    film = RNG.normal(size=(3, 100, 7))
    clips = np.stack([film[:, 2 * i : 2 * i + 9] for i in range(40)])
    assert overlap(array_source(clips, "x")) == (2, 9)
    assert overlap(array_source(np.concatenate([windows(16, 4, 40) for _ in range(3)]), "x")) == (4, 16)


@pytest.mark.parametrize("name", ["apart", "noise", "pictures", "bits", "same", "few"])
def test_what_does_not_overlap(name: str) -> None:
    pictures = np.zeros((60, 1, 12, 12), np.uint8)
    pictures[:, :, 4:8, 4:8] = RNG.integers(256, size=(60, 1, 4, 4))
    arrays = {
        "apart": windows(16, 16),
        "noise": RNG.normal(size=(60, 5)),
        "pictures": pictures,
        "bits": RNG.integers(2, size=(60, 6)),
        "same": np.tile(np.arange(16.0) % 4, (60, 1)),
        "few": windows(16, 4, 3),
    }
    assert overlap(array_source(arrays[name], "x")) is None


def test_a_random_split_of_windows_is_remarked_on_and_a_tail_shares_no_value(tmp_path: Path) -> None:
    x = windows(16, 4, 100, 1)
    np.save(tmp_path / "x.npy", x)
    leaky = load_dataset(tmp_path / "x.npy")
    assert leaky.test is not None and bool(torch.isin(leaky.test, leaky.train).any())
    assert (
        sum("windows overlap: each item is the one before it moved by 4 of 16" in note and "--split tail" in note for note in leaky.notes)
        == 1
    )
    tail = load_dataset(tmp_path / "x.npy", split="tail")
    assert tail.test is not None and len(tail.test) == 10 and len(tail.train) == 87, "three that straddle are left out"
    assert not bool(torch.isin(tail.test, tail.train).any())
    assert torch.equal(tail.test.flatten().unique(), torch.from_numpy(x[90:]).flatten().unique())
    assert any("the 3 items before the held-out ones" in note for note in tail.notes)


@pytest.mark.parametrize("value", [-9999.0, 9.969209968386869e36, -5000.0])
def test_marks_of_missing_cells_are_remarked_on(value: float) -> None:
    x = torch.from_numpy(RNG.normal(size=(400, 3))).float()
    x[:20, 1] = value
    (line,) = remarks(x[torch.randperm(400)], ["a", "b", "c"])
    assert line.startswith(f"column 'b': {value:.7g} stands in 20 of 400 cells") and f"--missing {value:.7g}" in line


def test_a_known_mark_need_not_be_far_away() -> None:
    x = torch.from_numpy(5000 * RNG.random((400, 1)))
    x[:20] = -9999
    assert len(remarks(x)) == 1
    x[:20] = -9000
    assert remarks(x) == []


@pytest.mark.parametrize("shape", [(300, 3), (300, 3, 16), (12, 3)])
def test_one_odd_cell_is_remarked_on(shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(RNG.normal(size=shape)).float()
    x.view(shape[0], 3, -1)[7, 2, 0] = 1e6
    (line,) = remarks(x)
    assert "2: 1000000 stands in 1 of" in line and "decides the scale" in line


def test_ordinary_data_have_no_remarks() -> None:
    ordinary = {
        "normal": RNG.normal(size=(1000, 4)),
        "skewed": np.exp(2 * RNG.normal(size=(1000, 4))),
        "bits": RNG.integers(2, size=(1000, 4)),
        "rain": np.maximum(RNG.normal(size=(1000, 4)), 0),
        "sparse": (RNG.random(size=(1000, 4)) < 0.003) * 1.0,
        "modes": np.where(RNG.random((1000, 4)) < 0.2, 20.0, 60.0) + RNG.normal(size=(1000, 4)),
        "constant": np.ones((1000, 4)),
        "few": np.array([[0.0], [1e6]]),
    }
    for name, values in ordinary.items():
        assert remarks(torch.from_numpy(values)) == [], name


def test_many_odd_columns_take_four_lines() -> None:
    x = torch.from_numpy(RNG.normal(size=(300, 9)))
    x[5] = -9999
    x[6] = -9999
    lines = remarks(x)
    assert len(lines) == 4 and lines[-1] == "6 more columns hold such values"


def test_the_loader_says_it(tmp_path: Path) -> None:
    rows = RNG.normal(size=(200, 2))
    rows[11, 1] = rows[50, 1] = -9999
    (tmp_path / "t.csv").write_text("a,depth\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert any("column 'depth': -9999 stands in 2 of" in note for note in load_dataset(tmp_path / "t.csv").notes)
    assert not any("-9999 stands" in note for note in load_dataset(tmp_path / "t.csv", missing=-9999).notes)
