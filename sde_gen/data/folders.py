"""Images in a folder or an archive, with subfolders or a dataset.json as labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sde_gen.data import archives, formats
from sde_gen.data.archives import MOST_MEMBER, members
from sde_gen.data.assemble import Part, assemble
from sde_gen.data.captions import CAPTION, read_captions, with_captions
from sde_gen.data.dataset import Dataset
from sde_gen.data.decode import CHANNELS, FORMATS, LEVELS, describe, read_limited
from sde_gen.data.errors import one_line
from sde_gen.data.images_together import Together
from sde_gen.data.source import IN_MEMORY, Source, array_source

_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")
_DESCRIPTION = "dataset.json"
_ENDINGS = " ".join(FORMATS)


def load_images(
    path: Path,
    size: int | None = None,
    in_memory: int = IN_MEMORY,
    condition_map: Path | None = None,
    captions: Path | None = None,
    mode: str | None = None,
    **options: Any,
) -> Dataset:
    """A data set (N, C, H, W) of the images below a folder, or in a .tar, .tar.gz, .tgz or .zip archive.

    Where the top folders are train and test (or val, valid, validation), they are the split. The subfolders (below these) are
    the classes, in sorted order; images in none have no labels. Where a file dataset.json with a "labels" entry lies at the top, as
    StyleGAN's and EDM's tools write it, the labels are those, [[path, class], ...] or null, and subfolders mean nothing. Other and
    hidden files are left out and counted in the notes. A folder that takes more than `in_memory` is decoded batch by batch.

    Args:
        path: the folder or archive.
        size: resize each image's shorter side to this and cut out the middle square; None: all must be of one size and mode.
        in_memory: bytes.
        condition_map: another folder or archive, whose images are the condition "map" of those of the same names, whatever their endings:
            all of one size and mode, on the same grid or a coarser one. `size` resizes those that are larger or no squares.
        captions: a table or a folder of texts, whose entry for each image is its condition "caption" (`captions.read_captions`).
        mode: a key of `decode.MODES`, to which the images (not their maps) are converted; None: all must be of one mode.
        options: of `assemble`.

    Raises:
        ValueError: no images, images that are broken or not allowed (see `decode`) or of different sizes or modes, the first of them named
            and all counted, a damaged archive, an image without a map or a map without an image.
    """
    images = _read(path, size, in_memory, mode)
    maps = None if condition_map is None else _maps(condition_map, images, size, in_memory)
    texts, about = ([], []) if captions is None else read_captions(captions, images.names)
    found = _finish(images, maps, texts, in_memory, options)
    return replace(found, notes=(*found.notes, *about))


def item_shape(path: Path, size: int | None = None, mode: str | None = None) -> tuple[int, ...]:
    """Shape of the first image found, from its header."""
    if path.is_dir():
        first = next(iter(sorted(image_names(path))), None)
        found = None if first is None else (first, _content(path, first))
    else:
        found = next(((name, content) for name, content in members(path, is_image) if content is not None), None)
    if found is None or found[1] is None:
        raise _none(path, 0)
    (height, width), found_mode = describe(found[1], f"{path.name}/{found[0]}", mode)
    return (CHANNELS.get(found_mode, 1), *((height, width) if size is None else (size, size)))


def other_files(path: Path) -> tuple[str, list[str]] | None:
    """The format (`formats.FORMATS`) and the names of the files of a folder that holds no images but items in another format; None for a
    folder of images. TIFF files that pillow reads whole, of 8 bits or of 16 bits of grey, are images."""
    found: dict[str, list[str]] = {}
    tiffs: list[str] = []
    for name in _walk(path):
        parts = PurePosixPath(name).parts
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        form = formats.format_of(name)
        if form == "tiff":
            tiffs.append(name)
        elif is_image(name):
            return None
        elif form is not None:
            found.setdefault(form, []).append(name)
    with_folders = {form: names for form, names in found.items() if formats.FORMATS[form].read_folder is not None}
    if with_folders:
        form = max(with_folders, key=lambda form: len(with_folders[form]))
        return form, sorted(with_folders[form], key=_order)
    if not tiffs:
        return None
    first = min(tiffs, key=_order)
    try:
        describe(_content(path, first), first)
    except ValueError:
        return "tiff", sorted(tiffs, key=_order)
    return None


@dataclass(frozen=True, eq=False)
class _Images:
    """What was found: the images by their names, in order, their mode, how many other files, and the dataset.json files by name."""

    path: Path
    names: list[str]
    source: Source
    mode: str
    left_out: int
    described: dict[str, bytes]

    @property
    def keys(self) -> list[str]:
        """The names without their endings and the folders around everything."""
        return _keys(self.names)


def _keys(names: Sequence[str]) -> list[str]:
    """The names without their endings and the folders around everything."""
    return [PurePosixPath(*parts).with_suffix("").as_posix() for parts in _inside(PurePosixPath(name).parts for name in names)]


def _read(path: Path, size: int | None, in_memory: int, convert: str | None = None) -> _Images:
    return _from_folder(path, size, in_memory, convert) if path.is_dir() else _from_archive(path, size, in_memory, convert)


def _maps(path: Path, images: _Images, size: int | None, in_memory: int) -> Source:
    """The map of each image."""
    if not path.exists():
        raise ValueError(f"{path.name}: no such folder or archive; one with a map of each image of {images.path.name} is needed")
    if size is not None:
        height, width = item_shape(path)[1:]
        size = None if height == width <= size else size
    maps = _read(path, size, in_memory)
    source = maps.source.subset(_matched(maps, images.path, images.names))
    return source if maps.mode != "1" else replace(source, read=lambda rows: maps.source.read(rows).astype(bool))


def _matched(maps: _Images, folder: Path, names: Sequence[str]) -> np.ndarray:
    """The row of the map of each of the images `names` of `folder`, which has its name but for the ending."""
    rows = []
    for of, found in ((folder, names), (maps.path, maps.names)):
        keys = _keys(found)
        rows.append({key: row for row, key in enumerate(keys)})
        if len(rows[-1]) < len(found):
            twice = next(name for row, (name, key) in enumerate(zip(found, keys, strict=True)) if rows[-1][key] != row)
            raise ValueError(f"{of.name}/{twice}: another image has this name but for its ending; a map is found by it")
    of_images, of_maps = rows
    without, beyond = ([key for key in a if key not in b] for a, b in ((of_images, of_maps), (of_maps, of_images)))
    if without or beyond:
        parts = [f"no map of {len(without)} of {len(of_images)} images, the first {without[0]}"] if without else []
        parts += [f"{len(beyond)} of {len(of_maps)} maps of no image, the first {beyond[0]}"] if beyond else []
        raise ValueError(f"{maps.path.name}: {'; '.join(parts)}; a map of the same name for each image of {folder.name} is needed")
    return np.array([of_maps[key] for key in of_images])


def read_maps(path: Path, folder: Path, names: Sequence[str], in_memory: int) -> np.ndarray:
    """The maps (N, C, H, W) of the images `names` of `folder` from a folder or archive with an image of the same name for each.

    Raises ValueError, one line, for an image without a map or a map without an image, and maps of more than one size or mode.
    """
    maps = _read(path, None, in_memory)
    values = maps.source.read(maps.source.rows[_matched(maps, folder, names)])
    return values.astype(bool) if maps.mode == "1" else values


def _from_folder(path: Path, size: int | None, in_memory: int, convert: str | None) -> _Images:
    found = sorted(_walk(path), key=_order)
    names = [name for name in found if is_image(name)]
    if not names:
        raise _none(path, len(found))
    described = {name: _content(path, name) for name in found if _is_description(name)}
    seen = Together(path, size, convert, len(names))
    seen.look(_content(path, names[0]), names[0])
    item = seen.item
    if item is not None and len(names) * int(np.prod(item)) <= in_memory:  # as bytes, which is how they are kept
        images = [seen.decoded(_content(path, name), name) for name in names]
        seen.check()
        return _Images(path, names, array_source(np.stack(images), path.name), seen.mode, len(found) - len(names), described)  # type: ignore[arg-type]
    for name in names[1:]:  # only the headers: the pixels are decoded when they are asked for
        seen.look(_content(path, name), name)
    seen.check()

    def read(rows: np.ndarray) -> np.ndarray:
        images = [seen.decoded(_content(path, names[row]), names[row]) for row in rows.tolist()]
        seen.check()
        return np.stack(images)  # type: ignore[arg-type]

    source = Source(path.name, seen.item or (), read, np.arange(len(names)))
    return _Images(path, names, source, seen.mode, len(found) - len(names), described)


def _from_archive(path: Path, size: int | None, in_memory: int, convert: str | None) -> _Images:
    if not path.is_file():
        raise ValueError(f"{path.name}: no such file or folder; a folder of images or an archive ({' '.join(archives.ENDINGS)}) is needed")
    images: dict[str, np.ndarray] = {}
    seen = Together(path, size, convert)
    described: dict[str, bytes] = {}
    left_out = used = 0
    for name, content in members(path, lambda name: is_image(name) or _is_description(name)):
        if content is None or _is_description(name):
            left_out += 1
            described |= {} if content is None else {name: content}
            continue
        image = seen.decoded(content, name)
        if image is not None:
            images[name] = image
            used += image.nbytes
        if used > in_memory:
            raise ValueError(f"{path.name}: its images take more than {in_memory:,} bytes; unpack it: a folder is read batch by batch")
    seen.check()
    if not images:
        raise _none(path, left_out)
    names = sorted(images, key=_order)
    source = array_source(np.stack([images[name] for name in names]), path.name)
    return _Images(path, names, source, seen.mode, left_out, described)


def _finish(images: _Images, maps: Source | None, captions: Sequence[str], in_memory: int, options: dict[str, Any]) -> Dataset:
    path, names, mode, left_out = images.path, images.names, images.mode, images.left_out
    whole = Part(images.source, cond={} if maps is None else {"map": maps})
    if captions:  # which go along as their numbers
        whole = replace(whole, cond={**whole.cond, CAPTION: array_source(np.arange(len(captions), dtype=np.float64), path.name)})
    known = _described(path, names, images.described)
    if known is None:
        train, test, notes = _parts([PurePosixPath(name).parts for name in names], whole)
    else:
        left_out -= 1
        (labels, note), test = known, None
        train, notes = replace(whole, labels=labels), [note]
    source = images.source
    shape = source.item
    kind = {"RGB": "colour", "RGBA": "colour-and-alpha", "L": "grey", "I;16": "16-bit grey", "1": "black-and-white"}[mode]
    notes.insert(0, f"{len(names):,} {kind} images of {shape[2]} x {shape[1]} (axes NCHW; levels 0 .. {LEVELS[mode] - 1})")
    if left_out:
        notes.append(f"{left_out} other file(s) left out: only {_ENDINGS} are read, no hidden files, no links")
    shown = (0.0, LEVELS[mode] - 1.0)
    dataset = assemble(path.name, train, test, levels=LEVELS[mode], value_range=shown, notes=notes, in_memory=in_memory, **options)
    dataset = replace(dataset, header=_header(images))
    return with_captions(dataset, captions) if captions else dataset


def _header(images: _Images) -> dict[str, Any] | None:
    """What has to be known to write samples as these files are, where PNGs of their values are not that."""
    endings = {PurePosixPath(name).suffix.lower() for name in images.names}
    if endings <= {".tif", ".tiff"} and images.path.is_dir():
        dtype = {"I;16": "uint16", "1": "bool"}.get(images.mode, "uint8")
        letters = "NHWC" if images.mode in CHANNELS else "NHW"
        return {"format": "tiff", "dtype": np.dtype(dtype).str, "folder": min(endings), "letters": letters, "plain": True}
    return {"format": "images", "mode": images.mode} if images.mode == "RGBA" else None


def _described(path: Path, names: list[str], described: dict[str, bytes]) -> tuple[np.ndarray | None, str] | None:
    """The labels that the topmost dataset.json gives, and a line about them; None where there is no such file with labels."""
    if not described:
        return None
    top = min(described, key=lambda name: len(PurePosixPath(name).parts))
    try:
        content = json.loads(described[top])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}/{top}: cannot be read ({one_line(error)}); JSON is needed") from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    pairs = content["labels"]
    if pairs is None:
        return None, f"no labels, as {_DESCRIPTION} says; subfolders are not classes"
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise ValueError(f"{path.name}/{top}: its labels are not [[path, class], ...]; that, or null, is needed")
    given = dict(pairs)
    folder = PurePosixPath(top).parent
    inside = [PurePosixPath(name).relative_to(folder).as_posix() if PurePosixPath(name).is_relative_to(folder) else name for name in names]
    absent = [name for name in inside if name not in given]
    if absent:
        raise ValueError(f"{path.name}/{top}: no label for {len(absent)} of {len(names)} images, the first {absent[0]}; one each is needed")
    labels = [given[name] for name in inside]
    if not all(type(label) is int for label in labels) and not all(isinstance(label, str) for label in labels):
        return None, f"the labels of {_DESCRIPTION} are not used: they are not one whole number or word an image"
    return np.array(labels), f"labels from {_DESCRIPTION}; subfolders are not classes"


def _inside(paths: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths without a folder around everything, which says nothing."""
    found = list(paths)
    while all(len(parts) > 1 and parts[0] == found[0][0] for parts in found):
        found = [parts[1:] for parts in found]
    return found


@dataclass(frozen=True, eq=False)
class Split:
    """What folders stand for: the rows of training and of held-out items (None: no such folders), their labels, and a line about them."""

    train: np.ndarray
    labels: np.ndarray | None
    test: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def split_and_labels(paths: Sequence[tuple[str, ...]]) -> Split:
    """The split and the labels that the folders of files stand for; `paths`: the parts of each file's name."""
    paths = _inside(paths)
    tops = {parts[0].lower() for parts in paths if len(parts) > 1}
    split = any(top in _TRAIN for top in tops) and any(top in _TEST for top in tops) and all(len(parts) > 1 for parts in paths)
    if not split or not tops <= {*_TRAIN, *_TEST}:
        labels, notes = _labels(paths)
        return Split(np.arange(len(paths)), labels, notes=tuple(notes))
    held = np.array([parts[0].lower() in _TEST for parts in paths])
    labels, notes = _labels([parts[1:] for parts in paths])
    train, test = (np.flatnonzero(rows) for rows in (~held, held))
    of_train, of_test = (None if labels is None else labels[rows] for rows in (train, test))
    return Split(train, of_train, test, of_test, tuple(notes))


def _parts(paths: Sequence[tuple[str, ...]], whole: Part) -> tuple[Part, Part | None, list[str]]:
    """The parts of a split that the folders stand for, with their labels."""
    found = split_and_labels(paths)
    train = replace(whole.subset(found.train), labels=found.labels)
    test = None if found.test is None else replace(whole.subset(found.test), labels=found.test_labels)
    return train, test, list(found.notes)


def _labels(paths: Sequence[tuple[str, ...]]) -> tuple[np.ndarray | None, list[str]]:
    inside = [len(parts) > 1 for parts in paths]
    if all(inside):
        return np.array([parts[0] for parts in paths]), []
    return None, ["no labels: some images lie in subfolders and some in none"] if any(inside) else []


def _walk(path: Path) -> Iterator[str]:
    """Every file below a folder, by its path in it with / between; links to folders are not followed."""
    try:
        for folder, _, names in os.walk(path, onerror=_raise):
            below = Path(folder).relative_to(path)
            yield from ((below / name).as_posix() for name in names)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); a folder of images is needed") from error


def image_names(path: Path) -> list[str]:
    """The images below a folder, by their paths in it with / between."""
    return [name for name in _walk(path) if is_image(name)]


def _raise(error: OSError) -> None:
    raise error


def _content(path: Path, name: str) -> bytes:
    try:
        with (path / name).open("rb") as file:
            return read_limited(file, f"{path.name}/{name}", MOST_MEMBER)
    except OSError as error:
        raise ValueError(f"{path.name}/{name}: cannot be read ({one_line(error)}); a complete file is needed") from error


def is_image(name: str) -> bool:
    """Whether a path in a folder or an archive is that of an image, and no hidden file."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in FORMATS and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _is_description(name: str) -> bool:
    return PurePosixPath(name).name == _DESCRIPTION


def _order(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


def _none(path: Path, files: int) -> ValueError:
    return ValueError(f"{path.name}: no images among its {files} file(s); files with {_ENDINGS} are needed")
