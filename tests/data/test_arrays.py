from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import arrays as module
from sde_gen.data import item_shape, load_dataset

RNG = np.random.default_rng(0)


def save(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    array = RNG.random(shape) > 0.5 if dtype is bool else (RNG.random(shape) * 200).astype(dtype)
    np.save(path, array)
    return array


@pytest.mark.parametrize(
    ("shape", "dtype", "item", "levels", "note"),
    [
        ((30, 3), np.float64, (3,), None, None),
        ((30, 2, 17), np.float32, (2, 17), None, "signals"),
        ((30, 3, 8, 9), np.float32, (3, 8, 9), None, None),
        ((30, 2, 4, 5, 6), np.float32, (2, 4, 5, 6), None, None),
        ((30, 9, 7), np.uint8, (1, 9, 7), 256, "images of one channel, 9 x 7"),
        ((30, 8, 8), np.float32, (1, 8, 8), None, "images of one channel"),
        ((30, 9, 7, 3), np.uint8, (3, 9, 7), 256, "channels were last"),
        ((30, 9, 7, 3), np.float32, (9, 7, 3), None, "transpose"),
        ((30, 3, 9, 7), np.uint8, (3, 9, 7), 256, None),
        ((30, 9, 7), np.uint16, (1, 9, 7), 65536, "images of one channel"),
        ((30, 5), bool, (5,), 2, None),
        ((30, 5), np.int32, (5,), None, "continuous"),
        ((30, 5), np.float16, (5,), None, None),
        ((30, 5), ">f8", (5,), None, None),
    ],
)
def test_shapes_and_what_is_said_of_them(
    shape: tuple[int, ...], dtype: type, item: tuple[int, ...], levels: int | None, note: str | None, tmp_path: Path
) -> None:
    array = save(tmp_path / "x.npy", shape, dtype)
    dataset = load_dataset(tmp_path / "x.npy")
    assert dataset.shape == item == item_shape(str(tmp_path / "x.npy"))
    assert dataset.levels == levels and len(dataset.train) == 27 and dataset.name == "x.npy"
    said = [line for line in dataset.notes if "held out" not in line]
    assert (note is None and said == []) or (note is not None and note in said[0])
    moved = np.moveaxis(array, -1, 1) if note == "channels were last" else array
    whole = torch.from_numpy(moved.astype(np.float32)).reshape(30, -1)
    assert dataset.test is not None
    both = torch.cat((dataset.train, dataset.test)).flatten(1)
    assert torch.equal(both[both[:, 0].argsort(stable=True)].sum(0), whole[whole[:, 0].argsort(stable=True)].sum(0))


def test_it_is_mapped_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = save(tmp_path / "x.npy", (500, 40), np.float32)
    monkeypatch.setattr(np, "load", None)
    opened = module._open_npy(tmp_path / "x.npy")
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
    assert torch.equal(dataset.train, torch.from_numpy(x).float()) and dataset.levels == 256
    assert dataset.test is not None and torch.equal(dataset.test, dataset.train[:5])
    assert dataset.train_labels is not None and dataset.train_labels.tolist() == [0, 1] * 6 and dataset.classes == 2
    assert "arrays not used: extra" in dataset.notes and item_shape(str(tmp_path / "x.npz")) == (1, 3, 4)
    opened = module._open_member(tmp_path / "x.npz", module._members(tmp_path / "x.npz")["x"])
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
