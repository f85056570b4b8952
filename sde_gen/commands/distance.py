"""FID and its kin of one set of images to another on the command line, without any run: folders, archives, arrays, data sets, moments."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from .. import progress as progress_bars
from ..data import DATASETS, PATHS, Dataset, load_dataset, rows_drawn
from ..data.write import DataDescription
from ..external.feature_networks import FEATURES
from ..metrics.image_features import check_images
from ..report.files import write_text
from ..unknown_numbers import to_json
from .by_condition import titled
from .config import ConfigError
from .image_scores import LEAST, as_pictures, check_reference, described, lines_of, network_of, read_moments, reference_of, scores_of

Say = Callable[[str], None]
EXAMPLES = """examples:
  %(prog)s samples/ cifar10-32x32.npz --features inception:pt_inception-2015-12-05-6726825d.pth     FID to EDM's published moments
  %(prog)s samples.npz cifar10 --data-root DIR --features inception:FILE     to the training images of a named set
  %(prog)s samples/ photos/ --features imagenet                              no weights at hand: no FID, but photographs' features
  %(prog)s photos/ --image-size 64 --features inception:FILE --save photos.npz     moments once, for later

FID, its value at infinitely many images, KID and Inception Score, each with its standard error. FID at N images stands beside others
at N alone. pytorch-fid:FILE resizes as pytorch-fid does, inception:FILE as TensorFlow, torch-fidelity and EDM do."""


def add_distance_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distance`."""
    parser.add_argument("samples", metavar="IMAGES", help=f"{PATHS}, or a named set: {', '.join(DATASETS)}")
    parser.add_argument("reference", metavar="REFERENCE", nargs="?", help="the same, or an .npz of moments (mu, sigma)")
    parser.add_argument("--features", metavar="NAME", required=True, help=f"{FEATURES.partition(', ')[2]}")
    parser.add_argument("--image-size", metavar="N", type=int, help="resize images from files first: shorter side to N, middle square")
    parser.add_argument("--range", metavar="X", nargs=2, type=float, help="values of arrays of fractions that are black and white")
    parser.add_argument("--axes", metavar="LETTERS", help="of arrays: a letter for each axis, NCHW or NHWC")
    parser.add_argument("--data-root", metavar="DIR", help="directory of a named set's files")
    parser.add_argument("--images", metavar="N", type=int, help="so many drawn of IMAGES (default: all)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of draws (default %(default)s)")
    parser.add_argument("--save", metavar="FILE", type=Path, help="an .npz of the moments of IMAGES, which others read too")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the numbers as JSON")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def distance_run(arguments: argparse.Namespace, device: torch.device | str = "cpu", say: Say = print) -> dict[str, Any]:
    """Measure one set of images, and say what was found; the numbers by name. ConfigError, one line, for bad input."""
    for name, path in (("--save", arguments.save), ("--out", arguments.out)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"{name} {path}: there is no directory {path.absolute().parent}")
    if arguments.reference is None and arguments.save is None:
        raise ConfigError("give a REFERENCE to compare with, or --save FILE for the moments of the images alone")
    network = network_of(arguments.features, device)
    if arguments.reference is not None and _holds_moments(arguments.reference):
        reference = read_moments(network, arguments.reference)
    else:
        reference = None
    ours, data = _features(network, arguments.samples, arguments, arguments.images)
    if arguments.save is not None:
        moments = metrics.Moments.of(ours, arguments.samples)
        moments.write(arguments.save)
        say(f"moments   {arguments.save}: of {len(ours)} images")
    scores: dict[str, Any] = {"images": arguments.samples} | described(network, arguments.features, data.shape)
    if arguments.reference is not None:
        if reference is None:
            theirs, other = _features(network, arguments.reference, arguments)
            part = "training images" if arguments.reference in DATASETS else "images"
            reference = reference_of(theirs, f"{len(theirs)} {part} of {arguments.reference}", arguments.seed)
            sizes = ["x".join(map(str, one.shape[1:])) for one in (data, other)]
            if sizes[0] != sizes[1]:
                say(f"warning   images of {sizes[0]} beside a reference of {sizes[1]}: what resizing does to either counts as well")
        check_reference(network, reference.moments)
        scores |= scores_of(network, ours, reference, arguments.seed)
        for line in titled("images", lines_of(scores)):
            say(line)
    if arguments.out is not None:
        write_text(arguments.out, to_json(scores, 1))
        say(f"numbers   {arguments.out}")
    return scores


def _holds_moments(name: str) -> bool:
    """Whether an .npz has both moments beside whatever else."""
    if not name.lower().endswith(".npz") or not os.path.isfile(name):
        return False
    try:
        with zipfile.ZipFile(name) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # said where it is read


def _features(network: metrics.ImageFeatures, name: str, arguments: argparse.Namespace, most: int | None = None) -> tuple[Tensor, Dataset]:
    """Features of a set of images: of a named one the training part, of files all of them, or `most` drawn ones."""
    of_files = {} if name in DATASETS else {"size": arguments.image_size, "axes": arguments.axes if _is_array(name) else None}
    try:
        data = load_dataset(name, arguments.data_root, **of_files)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        check_images(data.shape)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    description = DataDescription.of(data)
    unknown = data.levels is None and data.value_range is None
    if arguments.range is not None and unknown:
        low, high = arguments.range
        if not low < high:
            raise ConfigError(f"--range takes black and white, the lower first, got {low} {high}")
        description = replace(description, levels=None, whole=(False,), value_range=(low, high))
    elif unknown:
        raise ConfigError(
            f"{name} holds numbers from {float(data.train.min()):g} to {float(data.train.max()):g}: give --range, black and white"
        )
    parts: list[Tensor] = []
    total = len(data.training[0]) + (0 if name in DATASETS or data.test is None else len(data.test))
    wanted = total if most is None else most
    if not LEAST <= wanted <= total:
        few = f"{name} has {total} images" if most is None else f"--images {most} of the {total} in {name}"
        raise ConfigError(f"{few}; at least {LEAST} are needed, and no more than there are can be drawn")
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[rows_drawn(total, wanted, arguments.seed)] = True
    start = 0
    with progress_bars.bar(wanted, f"features of {name}", "image", not arguments.no_progress, leave=False) as progress:
        for piece in _pieces(data, name):
            kept = piece[chosen[start : start + len(piece)]]
            start += len(piece)
            for part in kept.split(64):
                parts.append(network.features(as_pictures(description, part)))
                progress.update(len(part))
    return torch.cat(parts), data


def _is_array(name: str) -> bool:
    return name.lower().endswith((".npy", ".npz"))


def _pieces(data: Dataset, name: str) -> Iterator[Tensor]:
    items = data.training[0]
    if isinstance(items, Tensor):
        yield items
    else:
        yield from (piece for _, piece in items.pieces())
    if data.test is not None and name not in DATASETS:
        yield data.test
