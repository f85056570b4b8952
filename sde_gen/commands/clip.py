"""CLIP on captioned pictures: trained, or gone on with, and measured by retrieval."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import report
from ..data import Dataset, load_dataset
from ..data.captions import CAPTION, texts_of
from ..pairs import CLIP, recall
from ..pairs.augment import may_be_mirrored, shorter
from ..report.files import write_text
from ..sdes import SDES
from ..training.checkpoint import CheckpointError
from ..training.pairs import ClipSettings, train_clip
from ..unknown_numbers import to_json
from .config import ConfigError

CLIP_EXAMPLES = """examples:
  %(prog)s --steps 1200                                             the emoji of the package
  %(prog)s --data photographs/ --captions photographs/captions.csv --image-size 64
  %(prog)s --noisy vp --out runs/emoji-noisy-clip                   told the noise level, for guidance
  %(prog)s --find "a green heart" --find "sad cat"                  the nearest held-out pictures of each text, in find.png

The directory holds checkpoint/ (weights and tokenizer; sde_gen.training.pairs.load_clip reads it) and clip.json, R@1 and R@10 of held-out
pictures and captions with standard errors. A training that was stopped goes on; one that is done is measured again."""
VARIANTS = 8
SHOWN = 8


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `clip`."""
    default = ClipSettings()
    parser.add_argument("--data", metavar="NAME", default="emoji", help="emoji, or a folder or archive of images (default %(default)s)")
    parser.add_argument("--captions", metavar="PATH", help="of a folder: a .csv or .tsv of file and caption, or a folder of .txt files")
    parser.add_argument("--image-size", metavar="N", type=int, help="resize images: shorter side to N, middle square")
    parser.add_argument("--mode", metavar="NAME", help="convert images: grey, rgb, rgba")
    parser.add_argument("--noisy", metavar="SDE", help=f"train on noisy states of an SDE, told the level: {', '.join(SDES)}")
    parser.add_argument("--steps", metavar="N", type=int, default=default.steps, help="optimiser steps (%(default)s)")
    parser.add_argument("--max-seconds", metavar="S", type=float, help="end training after this time")
    parser.add_argument("--batch", metavar="N", type=int, default=default.batch, help="pairs in each step (%(default)s)")
    parser.add_argument("--lr", metavar="X", type=float, default=default.lr, help="peak learning rate (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights, order and moves (%(default)s)")
    parser.add_argument("--find", metavar="TEXT", action="append", default=[], help="show the nearest held-out pictures (repeatable)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="directory (default runs/<data>-clip)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU (default: OMP_NUM_THREADS, else as many as are free)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def clip_run(arguments: argparse.Namespace, device: torch.device, say: Any) -> None:
    """Train CLIP on the data, measure it and leave all in the directory. ConfigError for what cannot be trained on."""
    beside = {"captions": arguments.captions, "size": arguments.image_size, "mode": arguments.mode}
    try:
        data = load_dataset(arguments.data, **{name: value for name, value in beside.items() if value is not None})
        if CAPTION not in data.texts or not isinstance(data.training[0], torch.Tensor):
            raise ValueError(f"data {data.name!r} has no captions in memory; --captions names those of a folder of images")
        settings = ClipSettings(
            arguments.steps, arguments.max_seconds, arguments.batch, arguments.lr, bfloat16=device.type == "cpu", seed=arguments.seed
        )
        out = arguments.out or Path("runs") / f"{Path(arguments.data).name}{'-noisy' if arguments.noisy else ''}-clip"
        for note in data.notes:
            say(f"data      {note}")
        clip = train_on(data, settings, arguments.noisy, device, out / "checkpoint", not arguments.no_progress, say)
    except CheckpointError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    found = measured(clip, data)
    write_text(out / "clip.json", to_json(found, 2))
    for name, one in found.items():
        say(f"{name:<10}R@1 {one['R@1']['value']:.3f} +- {one['R@1']['std_error']:.3f}, R@10 {one['R@10']['value']:.3f}, {one['what']}")
    if arguments.find:
        say(f"pictures  {_find(clip, data, arguments.find, out / 'find.png')}")


def train_on(
    data: Dataset,
    settings: ClipSettings,
    noisy: str | None,
    device: torch.device,
    path: Path | None,
    progress: bool = True,
    say: Any = print,
    **options: Any,
) -> CLIP:
    """A CLIP of the training items that have a caption, their captions said in several ways and their pictures moved about."""
    texts = texts_of(data.cond[CAPTION])
    rows = [row for row, text in enumerate(texts) if text]
    captions = [shorter(texts[row], VARIANTS, settings.seed) for row in rows]
    mirrored = torch.tensor([may_be_mirrored(texts[row]) for row in rows])
    say(f"pairs     {len(rows):,}, {int(mirrored.sum()):,} of which may be mirrored")
    common: dict[str, Any] = {"device": device, "path": path, "progress": progress} | options
    return train_clip(data.train[rows], captions, settings, noisy, mirrored=mirrored, **common)


def measured(clip: CLIP, data: Dataset) -> dict[str, dict[str, Any]]:
    """R@1 and R@10 of held-out pictures among all captions, training's too, and of held-out captions among the held-out pictures."""
    held, texts = data.held_out([CAPTION])
    if held is None:
        return {}
    own = texts_of(texts[CAPTION])
    rows = [row for row, text in enumerate(own) if text]
    own = [own[row] for row in rows]
    every = list(dict.fromkeys([*own, *filter(None, texts_of(data.cond[CAPTION]))]))
    number = {text: place for place, text in enumerate(every)}
    right = torch.zeros(len(rows), len(every), dtype=torch.bool)
    right[torch.arange(len(rows)), torch.tensor([number[text] for text in own])] = True
    with torch.no_grad():
        similarity = (clip.embed_images(held[rows]) @ clip.embed_texts(every).T).cpu()
    among = torch.tensor([number[text] for text in own])
    found = {}
    sides = (
        ("pictures", similarity, right, f"{len(rows):,} held-out pictures, each among {len(every):,} captions"),
        ("captions", similarity[:, among].T, right[:, among].T, f"{len(rows):,} held-out captions, each among as many pictures"),
    )
    for name, score, answer, what in sides:
        numbers = {f"R@{k}": vars(recall(score, answer, k)) for k in (1, 10)}
        found[name] = {**numbers, "what": what, "chance": float(answer.double().mean())}
    return found


def _find(clip: CLIP, data: Dataset, texts: list[str], path: Path) -> Path:
    held = data.train if data.test is None else data.test
    try:
        with torch.no_grad():
            best = (clip.embed_texts(texts) @ clip.embed_images(held).T).topk(min(SHOWN, len(held)), dim=1).indices.cpu()
    except ValueError as error:
        raise ConfigError(f"--find: {error}") from error
    return report.picture_conditions({"nearest held-out pictures": held[best.flatten()]}, texts, path, data.value_range)
