import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import Dataset, item_shape, load_dataset
from sde_gen.data.folders import load_images

RNG = np.random.default_rng(0)


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


def colour(height: int = 5, width: int = 4) -> np.ndarray:
    return RNG.integers(256, size=(height, width, 3), dtype=np.uint8)


def write(root: Path, files: dict[str, bytes], how: str = "folder") -> Path:
    """The files as a folder or an archive, in an order that is not the sorted one."""
    names = sorted(files, reverse=True)
    if how == "folder":
        for name in names:
            (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "set" / name).write_bytes(files[name])
        return root / "set"
    path = root / f"set{how}"
    if how == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, files[name])
        return path
    with tarfile.open(path, "w" if how == ".tar" else "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return path


def everything(dataset: Dataset) -> torch.Tensor:
    """All items, training and held out."""
    return dataset.train if dataset.test is None else torch.cat((dataset.train, dataset.test))


@pytest.mark.parametrize("how", ["folder", ".tar", ".tar.gz", ".tgz", ".zip"])
def test_classes_order_and_other_files(how: str, tmp_path: Path) -> None:
    images = {f"{kind}/{i}.png": colour() for kind in ("cat", "dog") for i in range(4)}
    files = {name: encoded(image) for name, image in images.items()} | {
        "README.txt": b"hello",
        "cat/._0.png": b"junk",
        "dog/.DS_Store": b"",
    }
    path = write(tmp_path, files, how)
    dataset = load_dataset(path)
    expected = torch.from_numpy(np.stack([images[name] for name in sorted(images)])).permute(0, 3, 1, 2).float()
    assert torch.equal(dataset.train, expected) and dataset.test is None and dataset.levels == 256
    assert dataset.train_labels is not None and dataset.train_labels.tolist() == [0] * 4 + [1] * 4 and dataset.classes == 2
    assert dataset.notes[0] == "8 colour images of 4 x 5"
    assert any("3 other file(s) left out" in note for note in dataset.notes)
    assert item_shape(str(path)) == (3, 5, 4)


@pytest.mark.parametrize("how", ["folder", ".tar.gz"])
@pytest.mark.parametrize("above", ["", "cifar/"])
def test_train_and_test_folders_are_the_split(how: str, above: str, tmp_path: Path) -> None:
    images = {f"{above}{part}/{kind}/{i}.jpg": colour() for part in ("train", "test") for kind in "ba" for i in range(3)}
    dataset = load_dataset(write(tmp_path, {name: encoded(image, "JPEG") for name, image in images.items()}, how))
    assert dataset.train.shape == (6, 3, 5, 4) and dataset.test is not None and dataset.test.shape == (6, 3, 5, 4)
    assert dataset.train_labels is not None and dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test_labels is not None and dataset.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    decoded = np.asarray(Image.open(io.BytesIO(encoded(images[f"{above}test/a/0.jpg"], "JPEG"))))
    assert torch.equal(dataset.test[0], torch.from_numpy(decoded.copy()).permute(2, 0, 1).float())


def test_plain_folders_and_images_in_and_out_of_subfolders(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(colour()) for i in range(3)}
    assert load_dataset(write(tmp_path, files)).classes is None
    dataset = load_dataset(write(tmp_path, {"cat/9.png": encoded(colour())}))
    assert dataset.classes is None and any("no labels" in note for note in dataset.notes)
    one = load_dataset(write(tmp_path, {f"x/y/{name}": content for name, content in files.items()}, ".zip"))
    assert one.classes is None and len(one.train) == 3


@pytest.mark.parametrize(
    ("mode", "channels", "levels"), [("L", 1, 256), ("RGB", 3, 256), ("P", 3, 256), ("I;16", 1, 65536), ("1", 1, 2), ("PPM", 3, 256)]
)
def test_modes(mode: str, channels: int, levels: int, tmp_path: Path) -> None:
    arrays = [RNG.integers(65536, size=(6, 5), dtype=np.uint16) if mode == "I;16" else colour(6, 5) for _ in range(12)]
    kind = "PPM" if mode == "PPM" else "PNG"
    files = {f"{i:02}.{kind.lower()}": encoded(array, kind, None if mode in ("I;16", "PPM") else mode) for i, array in enumerate(arrays)}
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.shape == (channels, 6, 5) and dataset.levels == levels and dataset.value_range == (0, levels - 1)
    both = everything(dataset)
    assert both.min() >= 0 and both.max() < levels and torch.equal(both, both.round())
    whole = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB") if mode == "P" else Image.open(io.BytesIO(content)))
        for content in files.values()
    ]
    assert both.double().sum() == sum(float(array.astype(np.float64).sum()) for array in whole)


@pytest.mark.parametrize("deep", [False, True])
def test_size_resizes_the_shorter_side_and_cuts_the_middle(deep: bool, tmp_path: Path) -> None:
    files = {}
    for i, (height, width) in enumerate([(8, 16), (24, 12), (4, 4)] * 2):
        columns = np.linspace(0, 200, width)[None] * np.ones((height, 1))
        files[f"{i}.png"] = encoded((columns * 256).astype(np.uint16) if deep else columns.astype(np.uint8))
    dataset = load_dataset(write(tmp_path, files), size=4)
    assert dataset.train.shape == (6, 1, 4, 4) and item_shape(str(tmp_path / "set"), 4) == (1, 4, 4)
    wide, unchanged = dataset.train[0, 0, 0] / (256 if deep else 1), dataset.train[2, 0, 0] / (256 if deep else 1)
    assert unchanged.tolist() == pytest.approx([0, 66.7, 133.3, 200], abs=1)
    assert wide.mean() == pytest.approx(100, abs=1) and 50 < float(wide[0]) < 70, "the middle half of the columns"


def test_a_camera_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    other = encoded(np.full((16, 8, 3), 9, np.uint8), "JPEG")
    path = write(tmp_path, {"a.jpg": buffer.getvalue(), "b.jpg": other})
    assert item_shape(str(path)) == (3, 16, 8)
    image = load_dataset(path).train[0]
    assert image.shape == (3, 16, 8) and image[:, :7].min() > 200 and image[:, 9:].max() < 55


def test_a_folder_larger_than_memory_is_decoded_when_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, {f"{kind}/{i:02}.png": encoded(colour()) for kind in "ab" for i in range(20)})
    whole, lazy = load_images(path), load_images(path, in_memory=60 * 10)
    assert whole.source is None and lazy.source is not None and len(lazy.train) == 2 and len(lazy.source) == 36
    items, labels = lazy.training
    assert labels is not None and whole.train_labels is not None and torch.equal(labels, whole.train_labels)
    assert torch.equal(items[torch.tensor([30, 2])], whole.train[[30, 2]])
    with pytest.raises(ValueError, match=r"set.zip: its images take more than 600 bytes; unpack it"):
        load_images(write(tmp_path, {f"{i}.png": encoded(colour()) for i in range(12)}, ".zip"), in_memory=600)
    (path / "a" / "00.png").write_bytes(encoded(colour(6)))
    with pytest.raises(ValueError, match=r"a/01.png \(4 x 5, RGB\) is not like set/a/00.png \(4 x 6, RGB\)"):
        load_images(path, in_memory=600)


def test_an_encrypted_or_linked_member_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, {f"{i}.png": encoded(colour()) for i in range(3)}, ".tar")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("9.png", tarfile.SYMTYPE), ("8.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    dataset = load_dataset(path)
    assert len(dataset.train) == 3 and any("2 other file(s) left out" in note for note in dataset.notes)
