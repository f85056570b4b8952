import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.data import Dataset, item_shape, load_dataset
from sde_gen.data.folders import load_images
from sde_gen.data.reading import Reading

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
    root.mkdir(parents=True, exist_ok=True)
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


def pairs(items: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, ...]]:
    """Items with their labels, in an order that does not depend on the given one."""
    return sorted((*x.flatten().tolist(), y) for x, y in zip(items.double(), labels.tolist(), strict=True))


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
    assert dataset.train_labels is not None and dataset.classes == 2 and dataset.test is None and dataset.levels == 256
    assert pairs(dataset.train, dataset.train_labels) == pairs(expected, torch.tensor([0] * 4 + [1] * 4))
    assert dataset.notes[0] == "8 colour images of 4 x 5 (axes NCHW; levels 0 .. 255)"
    assert any("3 other file(s) left out" in note for note in dataset.notes)
    assert item_shape(str(path)) == (3, 5, 4)


@pytest.mark.parametrize("how", ["folder", ".tar.gz"])
@pytest.mark.parametrize("above", ["", "cifar/"])
def test_train_and_test_folders_are_the_split(how: str, above: str, tmp_path: Path) -> None:
    images = {f"{above}{part}/{kind}/{i}.jpg": colour() for part in ("train", "test") for kind in "ba" for i in range(3)}
    dataset = load_dataset(write(tmp_path, {name: encoded(image, "JPEG") for name, image in images.items()}, how))
    assert dataset.train.shape == (6, 3, 5, 4) and dataset.test is not None and dataset.test.shape == (6, 3, 5, 4)
    for part, items, labels in (("train", dataset.train, dataset.train_labels), ("test", dataset.test, dataset.test_labels)):
        files = [encoded(images[f"{above}{part}/{kind}/{i}.jpg"], "JPEG") for kind in "ab" for i in range(3)]
        whole = torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in files])).permute(0, 3, 1, 2)
        assert labels is not None and pairs(items, labels) == pairs(whole, torch.tensor([0, 0, 0, 1, 1, 1]))


def test_parts_of_their_own_are_put_in_a_random_order_too(tmp_path: Path) -> None:
    files = {f"{part}/{kind}/{i:02}.png": encoded(colour()) for part in ("train", "test") for kind in "ab" for i in range(20)}
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.train_labels is not None and dataset.test_labels is not None
    assert set(dataset.train_labels[:10].tolist()) == set(dataset.test_labels[:10].tolist()) == {0, 1}


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
    assert dataset.train.shape == (6, 1, 4, 4) and item_shape(str(tmp_path / "set"), Reading(size=4)) == (1, 4, 4)
    rows = sorted((dataset.train[:, 0, 0] / (256 if deep else 1)).tolist())  # by their first column: resized ones, then cut ones
    unchanged, wide = torch.tensor(rows[0]), torch.tensor(rows[-1])
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
    image = max(load_dataset(path).train, key=torch.max)
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
    with pytest.raises(ValueError, match=r"^set/a/00.png \(4 x 6, RGB\) is not like set/a/01.png \(4 x 5, RGB\)"):
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


def sorted_by_class(root: Path, mode: str | None = None) -> tuple[Path, list[str]]:
    """Four classes of 50 pictures, each of its own brightness, in folders that are read one after the other."""
    files = {}
    for k, kind in enumerate(("ant", "bee", "cat", "dog")):
        for i in range(50):
            grey = (60 * k + RNG.integers(20, size=(6, 6))).astype(np.uint8)
            files[f"{kind}/{i:03}.png"] = encoded(grey, mode=mode)
    return write(root, files), sorted(files)


@pytest.mark.parametrize("in_memory", [1 << 30, 36 * 120])
def test_the_head_of_a_class_sorted_folder_is_a_fair_draw(in_memory: int, tmp_path: Path) -> None:
    dataset = load_images(sorted_by_class(tmp_path)[0], in_memory=in_memory)
    assert (dataset.source is None) == (in_memory > 10_000) and dataset.classes == 4
    items, labels = dataset.training
    assert labels is not None and dataset.train_labels is not None and dataset.test is not None and dataset.test_labels is not None
    for head, head_labels in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels), (items[:40], labels[:40])):
        assert set(head_labels[:20].tolist()) == {0, 1, 2, 3} and int(torch.bincount(head_labels[:40]).max()) <= 20
        assert torch.equal((head[:20].amin((1, 2, 3)) // 60).long(), head_labels[:20]), "each item with its own label"
    few = load_images(tmp_path / "set", limit=24)
    assert few.train_labels is not None and set(few.train_labels.tolist()) == {0, 1, 2, 3} and len(few.train) == 24
    assert any("24 of 180 training items are used, drawn at random" in note for note in few.notes)
    more = load_images(tmp_path / "set", limit=60)
    assert torch.equal(more.train[:24], few.train), "the items of a smaller limit are among those of a larger one"


def test_tail_holds_out_the_end_of_the_files_order(tmp_path: Path) -> None:
    dataset = load_dataset(sorted_by_class(tmp_path)[0], split="tail")
    assert dataset.test is not None and dataset.test_labels is not None and dataset.test_labels.tolist() == [3] * 20
    assert any("held out the last 20 of 200 items" in note for note in dataset.notes)
    assert any("only 1 of 4 classes are among the held-out items" in note for note in dataset.notes)
    order = np.stack([np.asarray(Image.open(tmp_path / "set" / "dog" / f"{i:03}.png")) for i in range(30, 50)])
    assert not torch.equal(dataset.test[:, 0], torch.from_numpy(order).float()), "the last ones, in an order of their own"
    with pytest.raises(ValueError, match=r"split 'end'; random, stratified or tail is allowed"):
        load_dataset(tmp_path / "set", split="end")
    images = {f"{part}/a/{i}.png": encoded(colour()) for part in ("train", "test") for i in range(3)}
    with pytest.raises(ValueError, match="has a held-out part of its own"):
        load_dataset(write(tmp_path / "two", images), split="tail")


def edm(labels: object) -> dict[str, bytes]:
    """What EDM's dataset_tool writes: shards of pictures and dataset.json, the picture of label k being of brightness k."""
    files = {f"{i // 10:05}/img{i:08}.png": encoded(np.full((5, 4, 3), i % 3, np.uint8)) for i in range(40)}
    return files | {"dataset.json": json.dumps({"labels": labels}).encode()}


@pytest.mark.parametrize("how", ["folder", ".zip"])
@pytest.mark.parametrize("above", ["", "imagenet/"])
def test_the_labels_of_edms_dataset_json(how: str, above: str, tmp_path: Path) -> None:
    given = [[f"{i // 10:05}/img{i:08}.png", i % 3] for i in range(40)]
    dataset = load_dataset(write(tmp_path, {above + name: content for name, content in edm(given).items()}, how))
    assert dataset.classes == 3 and dataset.train_labels is not None and len(dataset.train) == 36
    assert torch.equal(dataset.train[:, 0, 0, 0].long(), dataset.train_labels)
    assert any("labels from dataset.json; subfolders are not classes" in note for note in dataset.notes)
    assert not any("left out" in note for note in dataset.notes)


def test_edms_dataset_json_without_labels_or_with_others(tmp_path: Path) -> None:
    none = load_dataset(write(tmp_path / "none", edm(None), ".zip"))
    assert none.classes is None and any("no labels, as dataset.json says" in note for note in none.notes)
    vectors = load_dataset(write(tmp_path / "vectors", edm([[f"{i // 10:05}/img{i:08}.png", [0.0, 1.0]] for i in range(40)])))
    assert vectors.classes is None and any("dataset.json are not used: they are not one whole number" in note for note in vectors.notes)
    for name, labels, message in (
        ("few", [["00000/img00000000.png", 1]], r"dataset.json: no label for 39 of 40 images, the first 00000/img00000001.png"),
        ("flat", [1, 2], r"dataset.json: its labels are not \[\[path, class\], \.\.\.\]"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(write(tmp_path / name, edm(labels)))
    with pytest.raises(ValueError, match=r"set/dataset.json: cannot be read .*JSON is needed"):
        load_dataset(write(tmp_path / "broken", edm(None) | {"dataset.json": b"{"}))
    other = load_dataset(write(tmp_path / "other", edm(None) | {"dataset.json": b'{"license": "CC0"}'}))
    assert other.classes == 4 and any("1 other file(s) left out" in note for note in other.notes)


@pytest.mark.parametrize(("option", "value"), [("axes", "NCHW"), ("missing", 0), ("label_column", "a")])
def test_options_that_are_not_for_images(option: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, {f"{i}.png": encoded(colour()) for i in range(3)})
    with pytest.raises(ValueError, match=f"set: {option}={value!r} is for"):
        load_dataset(path, **{option: value})


def test_images_that_cannot_be_used_are_named_together(tmp_path: Path) -> None:
    """Of each kind of fault: not only the first one found."""
    files = {f"{i:02}.png": encoded(colour()) for i in range(30)}
    mixed = files | {f"m{i:02}.png": encoded(colour(), mode="L") for i in range(11)} | {"n.png": encoded(colour(9))}
    with pytest.raises(ValueError) as caught:
        load_dataset(write(tmp_path / "mixed", mixed))
    text = str(caught.value)
    assert text.startswith("set/m00.png (4 x 5, L), set/m01.png") and "m07.png (4 x 5, L) and 4 more: 12 of 42 images" in text, text
    assert "not like set/00.png (4 x 5, RGB)" in text and "--mode" in text and "--image-size" in text and "\n" not in text
    refused = files | {f"m{i}.png": encoded(colour(), mode="RGBA") for i in range(9)} | {"broken.png": encoded(colour())[:-40]}
    with pytest.raises(ValueError, match=r"^set: 10 of 40 images cannot be .*broken.png: cannot be read.*m6.png: mode RGBA and 2 more$"):
        load_dataset(write(tmp_path / "refused", refused))


@pytest.mark.parametrize(("mode", "channels"), [("grey", 1), ("rgb", 3), ("rgba", 4)])
@pytest.mark.parametrize("how", ["folder", ".zip"])
def test_mixed_modes_are_converted_where_it_is_asked_for(mode: str, channels: int, how: str, tmp_path: Path) -> None:
    red = np.full((5, 4, 3), (255, 0, 0), np.uint8)
    clear = np.dstack((red, np.full((5, 4), 0, np.uint8)))  # red that is not to be seen
    files = {
        "a.png": encoded(red),
        "b.png": encoded(np.full((5, 4), 77, np.uint8)),
        "c.png": encoded(clear),
        "d.png": encoded(np.full((5, 4), 77 * 257, np.uint16)),
        "e.jpg": encoded(red, "JPEG", "CMYK"),
        "f.png": encoded(red, mode="P"),
        "g.png": encoded(np.full((5, 4), 255, np.uint8), mode="1"),
        "h.png": encoded(np.full((5, 4), 77, np.uint8), mode="LA"),
    }
    path = write(tmp_path, files, how)
    dataset = load_dataset(path, mode=mode)
    assert dataset.shape == (channels, 5, 4) == item_shape(str(path), Reading(mode=mode)) and dataset.levels == 256
    found = {tuple(x.flatten(1)[:, 0].tolist()) for x in everything(dataset)}
    see = {"grey": lambda *rgba: rgba[:1], "rgb": lambda *rgba: rgba[:3], "rgba": lambda *rgba: rgba}[mode]
    want = {see(77, 77, 77, 255), see(255, 255, 255, 255)} | ({(76,)} if mode == "grey" else {see(255, 0, 0, 255)})
    want |= {(255, 0, 0, 0)} if mode == "rgba" else {see(255, 255, 255, 255)}
    jpeg = {value for value in found if min(abs(np.array(value) - np.array(other)).max() for other in want) <= 3}
    assert found == jpeg and want <= found, (found, want)
    with pytest.raises(ValueError, match=r"mode 'sepia'; grey, rgb, rgba or None"):
        load_dataset(path, mode="sepia")
    with pytest.raises(ValueError, match=r"mode='rgb' is for images"):
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(9, 2)))
        load_dataset(tmp_path / "x.npy", mode="rgb")
