from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sde_gen.data import arrays as module
from sde_gen.data import item_shape, load_dataset
from sde_gen.data.reading import Reading

RNG = np.random.default_rng(0)


def items_and_labels(items: torch.Tensor, labels: Any) -> list[tuple[float, ...]]:
    """Both, in an order that does not depend on the given one."""
    return sorted((*x.flatten().tolist(), int(y)) for x, y in zip(items.double(), labels, strict=True))


def save(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    array = RNG.random(shape) > 0.5 if dtype is bool else (RNG.random(shape) * 200).astype(dtype)
    np.save(path, array)
    return array


@pytest.mark.parametrize(
    ("shape", "dtype", "item", "levels", "note"),
    [
        ((30, 3), np.float64, (3,), None, "rows of 3 columns (axes NC; float64, continuous)"),
        ((30, 2, 17), np.float32, (2, 17), None, "signals of 2 channels, length 17 (axes NCL; float32, continuous)"),
        ((30, 1, 3), np.float32, (1, 3), None, "signals of 1 channel, length 3 (axes NCL; float32, continuous)"),
        ((30, 17, 1), np.float32, (1, 17), None, "signals of 1 channel, length 17 (axes NLC, channels put first; float32, continuous)"),
        ((30, 3, 8, 9), np.float32, (3, 8, 9), None, "images of 3 channels, 8 x 9 (axes NCHW; float32, continuous)"),
        ((30, 3, 4, 4), np.float32, (3, 4, 4), None, "images of 3 channels, 4 x 4 (axes NCHW; float32, continuous)"),
        ((30, 2, 4, 5, 6), np.float32, (2, 4, 5, 6), None, "volumes of 2 channels, 4 x 5 x 6 (axes NCDHW; float32, continuous)"),
        ((30, 6, 5, 7, 1), np.float32, (1, 6, 5, 7), None, "volumes of 1 channel, 6 x 5 x 7 (axes NDHWC, channels put first; float32"),
        ((30, 9, 7), np.uint8, (1, 9, 7), 256, "images of 1 channel, 9 x 7 (axes NHW; uint8, levels 0 .. 255)"),
        ((30, 8, 8), np.float32, (1, 8, 8), None, "images of 1 channel, 8 x 8 (axes NHW; float32, continuous)"),
        ((30, 9, 7, 3), np.uint8, (3, 9, 7), 256, "images of 3 channels, 9 x 7 (axes NHWC, channels put first; uint8, levels 0 .. 255)"),
        ((30, 9, 7, 1), np.float32, (1, 9, 7), None, "images of 1 channel, 9 x 7 (axes NHWC, channels put first; float32, continuous)"),
        ((30, 3, 9, 7), np.uint8, (3, 9, 7), 256, "images of 3 channels, 9 x 7 (axes NCHW; uint8, levels 0 .. 255)"),
        ((30, 9, 7), np.uint16, (1, 9, 7), 65536, "images of 1 channel, 9 x 7 (axes NHW; uint16, levels 0 .. 65535)"),
        ((30, 9, 7), ">u2", (1, 9, 7), 65536, "images of 1 channel, 9 x 7 (axes NHW; uint16, levels 0 .. 65535)"),
        ((30, 5), bool, (5,), 2, "rows of 5 columns (axes NC; bool, levels 0 .. 1)"),
        ((30, 5), np.int32, (5,), None, "rows of 5 columns (axes NC; int32, continuous)"),
        ((30, 5), np.float16, (5,), None, "rows of 5 columns (axes NC; float16, continuous)"),
        ((30, 5), ">f8", (5,), None, "rows of 5 columns (axes NC; float64, continuous)"),
    ],
)
def test_shapes_and_what_is_said_of_them(
    shape: tuple[int, ...], dtype: Any, item: tuple[int, ...], levels: int | None, note: str, tmp_path: Path
) -> None:
    array = save(tmp_path / "x.npy", shape, dtype)
    dataset = load_dataset(tmp_path / "x.npy")
    assert dataset.shape == item == item_shape(str(tmp_path / "x.npy"))
    assert dataset.levels == levels and len(dataset.train) == 27 and dataset.name == "x.npy"
    assert dataset.notes[0].startswith(f"read as 30 {note}")
    moved = np.moveaxis(array, -1, 1) if "channels put first" in note else array
    whole = torch.from_numpy(moved.astype(np.float32)).reshape(30, -1)
    assert dataset.test is not None
    both = torch.cat((dataset.train, dataset.test)).flatten(1)
    assert torch.equal(both[both[:, 0].argsort(stable=True)].sum(0), whole[whole[:, 0].argsort(stable=True)].sum(0))


def test_it_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = save(tmp_path / "x.npy", (500, 40), np.float32)
    monkeypatch.setattr(np, "load", None)
    opened = module.open_npy(tmp_path / "x.npy")
    assert isinstance(opened, np.memmap) and not opened.flags.writeable
    np.testing.assert_array_equal(opened, array)
    dataset = module.load_npy(tmp_path / "x.npy", in_memory=8000)
    assert dataset.source is not None and len(dataset.source) == 450 and len(dataset.train) == 50
    assert torch.equal(dataset.source[:3], torch.from_numpy(array[dataset.source.rows[:3]]))


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_by_name(compressed: bool, tmp_path: Path) -> None:
    x, y = RNG.integers(256, size=(12, 1, 3, 4), dtype=np.uint8), np.array([5, 9] * 6)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", x=x, y=y, test=x[:5], test_labels=y[:5], extra=y)
    dataset = load_dataset(str(tmp_path / "x.npz"))
    assert dataset.train_labels is not None and dataset.classes == 2 and dataset.levels == 256
    assert items_and_labels(dataset.train, dataset.train_labels) == items_and_labels(torch.from_numpy(x), (y == 9) * 1)
    assert dataset.test is not None and dataset.test_labels is not None
    assert items_and_labels(dataset.test, dataset.test_labels) == items_and_labels(torch.from_numpy(x[:5]), (y[:5] == 9) * 1)
    assert "arrays not used: extra" in dataset.notes and item_shape(str(tmp_path / "x.npz")) == (1, 3, 4)
    opened = module.open_member(tmp_path / "x.npz", module.npz_members(tmp_path / "x.npz")["x"])
    assert isinstance(opened, np.memmap) is not compressed


def test_npz_of_one_nameless_array_fortran_order_and_words(tmp_path: Path) -> None:
    x = np.asfortranarray(RNG.random((20, 3)))
    np.savez(tmp_path / "one.npz", values=x)
    np.savez(tmp_path / "positional.npz", x)
    np.savez(tmp_path / "words.npz", x=x, labels=np.array(["cat", "dog"] * 10))
    for name in ("one", "positional", "words"):
        dataset = load_dataset(tmp_path / f"{name}.npz")
        assert dataset.train.double().sum() + dataset.test.double().sum() == pytest.approx(x.sum())  # type: ignore[union-attr]
    assert dataset.classes == 2 and any("cat, dog" in note for note in dataset.notes)


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1000, 1000)))
    monkeypatch.setattr(module, "MOST_UNPACKED", 1 << 20)
    with pytest.raises(ValueError, match=r"bomb.npz: its arrays unpack to 8,000,128 bytes; at most 1,048,576"):
        load_dataset(tmp_path / "bomb.npz")


@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((30, 9, 128), {"NCL": (9, 128), "NLC": (128, 9), "NHW": (1, 9, 128)}),
        ((30, 128, 3), {"NLC": (3, 128), "NCL": (128, 3)}),
        ((30, 16, 12, 12), {"NCHW": (16, 12, 12), "NDHW": (1, 16, 12, 12)}),
        ((30, 12, 12, 8), {"NHWC": (8, 12, 12), "NCHW": (12, 12, 8)}),
        ((30, 9, 7, 3), {"NHWC": (3, 9, 7)}),
        ((30, 6, 5, 7, 8), {"NDHWC": (8, 6, 5, 7), "NCDHW": (6, 5, 7, 8)}),
        ((12, 14, 3, 30), {"HWCN": (3, 12, 14)}),
        ((30, 7), {"NL": (1, 7), "NC": (7,)}),
    ],
)
def test_what_is_ambiguous_is_refused_and_axes_settle_it(shape: tuple[int, ...], ways: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    array = RNG.normal(size=shape).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    if len(shape) > 2:
        with pytest.raises(ValueError, match=r"x.npy: shape .* can be read in several ways: .*--axes") as caught:
            load_dataset(tmp_path / "x.npy")
        assert "\n" not in str(caught.value) and item_shape(str(tmp_path / "x.npy")) is None
    for axes, item in ways.items():
        dataset = load_dataset(tmp_path / "x.npy", axes=axes)
        assert (
            dataset.shape == item == item_shape(str(tmp_path / "x.npy"), Reading(axes=axes))
            and f"(axes N{axes.replace('N', '')}" in dataset.notes[0]
        )
        rows = np.moveaxis(array, axes.index("N"), 0)
        if "C" in axes and len(axes) > 2:
            rows = np.moveaxis(rows, axes.replace("N", "").index("C") + 1, 1)
        both = torch.cat((dataset.train, dataset.test)).flatten(1) if dataset.test is not None else dataset.train.flatten(1)
        whole = torch.from_numpy(rows.copy()).flatten(1)
        assert torch.equal(both[both[:, 0].argsort()], whole[whole[:, 0].argsort()])


@pytest.mark.parametrize("axes", ["", "HWC", "NCHHW", "NCX", "NCW", "N", "NCLHW"])
def test_axes_that_name_no_array(axes: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(30, 3, 5)))
    with pytest.raises(ValueError, match=r"axes '.*'; the letters N, C and"):
        load_dataset(tmp_path / "x.npy", axes=axes)
    with pytest.raises(ValueError, match=r"axes NCHW for an array of shape \(30, 3, 5\); one letter for each of its 3 axes"):
        load_dataset(tmp_path / "x.npy", axes="NCHW")


def test_missing_cells_are_left_out_with_their_labels(tmp_path: Path) -> None:
    x = RNG.normal(size=(50, 4)).astype(np.float32)
    y = np.arange(50) % 2
    for mark in (-9999.0, 9.96921e36, np.nan):
        holes = x.copy()
        holes[7, 2] = holes[20] = np.float32(mark)
        np.savez(tmp_path / "x.npz", x=holes, y=y)
        dataset = load_dataset(tmp_path / "x.npz", missing=str(mark))
        assert "2 of 50 items are left out: they have missing cells" in " ".join(dataset.notes)
        kept = np.array([i for i in range(50) if i not in (7, 20)])
        assert dataset.test is not None and dataset.test_labels is not None and dataset.train_labels is not None
        found = items_and_labels(torch.cat((dataset.train, dataset.test)), torch.cat((dataset.train_labels, dataset.test_labels)))
        assert found == items_and_labels(torch.from_numpy(x[kept]), y[kept])
    for mark, labels in ((-1, np.where(np.arange(50) == 9, -1, y)), (np.nan, np.where(np.arange(50) == 9, np.nan, y))):
        np.savez(tmp_path / "x.npz", x=x, y=labels)
        dataset = load_dataset(tmp_path / "x.npz", missing=mark)
        assert dataset.classes == 2 and any("1 of 50 items are left out" in note for note in dataset.notes)
    np.save(tmp_path / "whole.npy", np.arange(40).reshape(20, 2))
    whole = load_dataset(tmp_path / "whole.npy", missing=4)
    assert any("1 of 20 items are left out" in note for note in whole.notes)
    assert any("no item has a missing cell (0.5)" in note for note in load_dataset(tmp_path / "whole.npy", missing=0.5).notes)
    with pytest.raises(ValueError, match=r"missing 'NA'; a number, or 'nan', is needed"):
        load_dataset(tmp_path / "whole.npy", missing="NA")
    np.save(tmp_path / "none.npy", np.full((20, 2), -9999.0))
    with pytest.raises(ValueError, match=r"every one of its 20 items has a cell that is missing"):
        load_dataset(tmp_path / "none.npy", missing=-9999)


def test_nan_names_the_flag_that_settles_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.where(np.arange(60).reshape(20, 3) == 31, np.nan, 1.0 * np.arange(60).reshape(20, 3)))
    with pytest.raises(ValueError, match=r"item 10 holds NaN .*--missing nan"):
        load_dataset(tmp_path / "x.npy")


def test_parts_in_different_units_are_refused(tmp_path: Path) -> None:
    x = RNG.integers(256, size=(12, 1, 8, 9), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, test=(x / 255).astype(np.float32))
    with pytest.raises(ValueError, match="training items of type uint8 and held-out items of type float32"):
        load_dataset(tmp_path / "x.npz")
