"""From a sentence to a picture on the command line: GLIDE, GLIDE with CLIP's gradient, and DALL-E 2's prior and decoder."""

from __future__ import annotations

import argparse
import time
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .. import report
from ..conditions import fit_condition
from ..conditions.tokenizer import words_of
from ..data import Dataset, load_dataset
from ..data.captions import CAPTION, text_tensor, texts_of
from ..guidance import Classifier, guide
from ..locks import held
from ..models.denoiser import Denoiser
from ..models.score import ScoreModel
from ..pairs import CLIP, UnCLIP
from ..pairs.augment import shorter
from ..pairs.retrieval import ranks
from ..pairs.unclip import EMBEDDING
from ..report.files import write_text
from ..sampling.sample import sample
from ..training import CheckpointError, TrainSettings, build_model, load
from ..training.pairs import ClipSettings
from ..unknown_numbers import to_json
from .clip import train_on
from .config import ConfigError
from .parts import Part

Say = Callable[[str], None]
METHODS = ("glide", "glide+clip", "unclip")
"""What draws a picture: pixels given a caption (Nichol et al. 2021, arXiv:2112.10741); the same pushed by a CLIP of noisy states as well;
an image embedding given the caption and pixels given that (Ramesh et al. 2022, arXiv:2204.06125)."""
SECONDS, QUICK = 3600.0, 420.0
SHARES = {"clip": 0.16, "judge": 0.14, "noisy-clip": 0.12, "glide": 0.29, "decoder": 0.25, "prior": 0.04}
"""Of the seconds of all trainings."""
VARIANTS = 4
"""Captions of each picture, by leaving out some of its words, so that a short prompt is nothing new."""
PIXELS: dict[str, Any] = {"patch": 2, "width": 64, "multipliers": [1, 2], "attention": [1]}
CLIP_STRENGTH = 1.0
PROCESS = "cosine"
EXAMPLES = """examples:
  %(prog)s --quick --prompt "a green heart, in the style of noto" --prompt "sad cat"
  %(prog)s --prompt "red car"                                  an hour of training where nothing is there yet
  %(prog)s --data photos/ --captions photos/captions.csv --image-size 32 --out runs/photos-text
  %(prog)s --like picture.png                                  variations of what CLIP sees in it

Each network is trained once and used again; a training that was stopped goes on. text.png shows each prompt by each method at each
strength; text.json has what a second CLIP, which trained apart, says of them."""


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `text`."""
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="what to draw (repeatable)")
    parser.add_argument("--like", metavar="FILE", type=Path, help="draw variations of a picture")
    parser.add_argument("--method", choices=METHODS, action="append", help=f"(repeatable; default: {', '.join(METHODS)})")
    parser.add_argument("--strength", metavar="W", type=float, action="append", help="of guidance (repeatable; default 1, 2 and 4)")
    parser.add_argument("--samples", metavar="N", type=int, default=3, help="pictures of each (default %(default)s)")
    parser.add_argument("--steps", metavar="N", type=int, default=20, help="solver steps of a picture (default %(default)s)")
    parser.add_argument("--data", metavar="NAME", default="emoji", help="emoji, or a folder or archive of images (default %(default)s)")
    parser.add_argument("--captions", metavar="PATH", help="of a folder: a .csv or .tsv of file and caption, or a folder of .txt files")
    parser.add_argument("--image-size", metavar="N", type=int, help="resize images: shorter side to N, middle square")
    parser.add_argument("--seconds", metavar="S", type=float, help=f"of all trainings (default {SECONDS:.0f})")
    parser.add_argument("--quick", action="store_true", help=f"the same as --seconds {QUICK:.0f}")
    parser.add_argument("--out", metavar="DIR", type=Path, help="directory (default runs/DATA-text)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights, batches and pictures (default %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU (default: OMP_NUM_THREADS, else as many as are free)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


@dataclass
class TextParts:
    """The networks of a directory, each made when it is first asked for."""

    directory: Path
    data: Dataset
    seconds: float
    seed: int
    device: torch.device
    show: bool
    say: Say

    def __post_init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.texts = texts_of(self.data.cond[CAPTION])

    def _seconds(self, name: str) -> float:
        return max(1.0, SHARES[name] * self.seconds)

    def clip(self, name: str) -> CLIP:
        """A CLIP: "clip" of pictures, whose embeddings the prior and the decoder know, "judge", another of another seed, or "noisy-clip",
        of the states of GLIDE's process."""
        if name not in self.made:
            self.say(f"part      {name}, {self._seconds(name):.0f} s at most")
            seed = self.seed + (1000 if name == "judge" else 0)
            settings = ClipSettings(
                *(100_000, self._seconds(name)), batch=min(256, len(self.data.train)), seed=seed, bfloat16=self.device.type == "cpu"
            )
            noisy = PROCESS if name == "noisy-clip" else None
            place = self.directory / name / "checkpoint"
            self.made[name] = train_on(self.data, settings, noisy, self.device, place, self.show, self.say)
        found: CLIP = self.made[name]
        return found

    def _score(self, name: str, make: Callable[[], tuple[ScoreModel, Tensor, dict[str, Tensor], TrainSettings]]) -> ScoreModel:
        """A score model, read or trained."""
        if name not in self.made:
            identity = {"part": name, "data": self.data.signature(), "seconds": self._seconds(name), "seed": self.seed}
            if name in ("prior", "decoder"):
                identity["clip"] = _signature(self.clip("clip"))  # of another one they would be told numbers that mean nothing to them
            part = Part(self.directory / name / "checkpoint", identity, {}, f"removing {self.directory / name}")
            known, state = part.earlier(self.say)
            if known is not None and state is None:
                self.made[name] = load(part.checkpoint, device=self.device)
            else:
                self.say(f"part      {name}, {self._seconds(name):.0f} s")
                model, x, cond, settings = make()
                result = part.train(model, x, settings, self.device, self.show, state, cond=cond)
                self.made[name] = result.model
        found: ScoreModel = self.made[name]
        return found

    def _settings(self, name: str, batch: int, lr: float) -> TrainSettings:
        return TrainSettings(steps=1_000_000, batch=batch, lr=lr, drop=0.15, max_seconds=self._seconds(name), evaluations=2, seed=self.seed)

    def _captioned(self) -> tuple[Tensor, Tensor]:
        """Numbers of the training items that have a caption, each `VARIANTS` times, and their captions said in as many ways."""
        rows = [row for row, text in enumerate(self.texts) if text]
        captions = [(row, text) for row in rows for text in shorter(self.texts[row], VARIANTS, self.seed)]
        return torch.tensor([row for row, _ in captions]), text_tensor([text for _, text in captions])

    @property
    def glide(self) -> ScoreModel:
        """Pixels given a caption."""

        def make() -> tuple[ScoreModel, Tensor, dict[str, Tensor], TrainSettings]:
            rows, captions = self._captioned()
            spec = {CAPTION: fit_condition(CAPTION, captions, self.data.shape[1:], "text")}
            model = build_model(self.data.train, PROCESS, "unet", network_options=self._pixels(), conditions=spec, seed=self.seed)
            return model, self.data.train[rows], {CAPTION: captions}, self._settings("glide", 64, 1e-3)

        return self._score("glide", make)

    @property
    def decoder(self) -> ScoreModel:
        """Pixels given an image embedding."""

        def make() -> tuple[ScoreModel, Tensor, dict[str, Tensor], TrainSettings]:
            seen = self._embedded(self.data.train)
            spec = {EMBEDDING: fit_condition(EMBEDDING, seen, self.data.shape[1:], "numbers")}
            model = build_model(self.data.train, PROCESS, "unet", network_options=self._pixels(), conditions=spec, seed=self.seed)
            return model, self.data.train, {EMBEDDING: seen}, self._settings("decoder", 64, 1e-3)

        return self._score("decoder", make)

    @property
    def prior(self) -> ScoreModel:
        """An image embedding given a caption."""

        def make() -> tuple[ScoreModel, Tensor, dict[str, Tensor], TrainSettings]:
            rows, captions = self._captioned()
            seen = self._embedded(self.data.train)
            spec = {CAPTION: fit_condition(CAPTION, captions, (), "text")}
            model = build_model(seen, PROCESS, "mlp", network_options={"width": 512, "depth": 4}, conditions=spec, seed=self.seed)
            return model, seen[rows], {CAPTION: captions}, self._settings("prior", 256, 1e-3)

        return self._score("prior", make)

    def _pixels(self) -> dict[str, Any]:
        side = min(self.data.shape[1:])
        return PIXELS | {"patch": max(1, 2 * (side // 32))}

    def _embedded(self, x: Tensor) -> Tensor:
        clip = self.clip("clip")
        with torch.no_grad():
            return torch.cat([clip.embed_images(part).float().cpu() for part in x.split(256)])

    def draw(self, method: str, prompts: Sequence[str], strength: float, steps: int, seed: int) -> Tensor:
        """A picture of each prompt by a method in METHODS, in the data's own units; guidance pushes with this strength."""
        how: dict[str, Any] = {"solver": "dpm", "steps": steps}
        if method == "unclip":
            decoder: Denoiser = self.decoder if strength == 1 else guide(self.decoder, strength)
            whole = UnCLIP(self.clip("clip"), self.prior, decoder, how, how)
            return whole.draw(prompts, seed).cpu()
        model: Denoiser = self.glide if strength == 1 else guide(self.glide, strength)
        if method == "glide+clip":
            model = Classifier(model, self.clip("noisy-clip"), CLIP_STRENGTH, given=[CAPTION])
        shape = (len(prompts), *self.data.shape)
        return sample(model, shape, seed=seed, cond={CAPTION: text_tensor(prompts)}, progress=False, **how).x.cpu()


def text_run(arguments: argparse.Namespace, device: torch.device, say: Say = print) -> Path:
    """Train what is missing, draw the prompts by each method at each strength, judge them; the directory. ConfigError for bad input."""
    strengths, methods = arguments.strength or [1.0, 2.0, 4.0], tuple(dict.fromkeys(arguments.method or METHODS))
    seconds = QUICK if arguments.seconds is None and arguments.quick else SECONDS if arguments.seconds is None else arguments.seconds
    _check(arguments, strengths, seconds)
    try:
        beside = {"captions": arguments.captions, "size": arguments.image_size}
        data = load_dataset(arguments.data, **{name: value for name, value in beside.items() if value is not None})
        if CAPTION not in data.texts or not isinstance(data.training[0], Tensor) or len(data.shape) != 3:
            raise ValueError(f"data {data.name!r} is no set of captioned images in memory; --captions names the captions of a folder")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    directory = arguments.out or Path("runs") / f"{Path(arguments.data).name}-text"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file: --out takes a directory")
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory, "wait for it, or --out DIR works beside it"):
        parts = TextParts(directory, data, seconds, arguments.seed, device, not arguments.no_progress, say)
        try:
            if arguments.like is not None:
                return _variations(parts, arguments, strengths, say)
            return _prompts(parts, arguments, methods, strengths, say)
        except CheckpointError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _check(arguments: argparse.Namespace, strengths: Sequence[float], seconds: float) -> None:
    for name in ("samples", "steps"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}")
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--seconds must be positive and finite, got {seconds:g}")
    if any(not abs(w) < float("inf") for w in strengths):
        raise ConfigError(f"--strength must be finite, got {strengths}")
    if not arguments.prompt and arguments.like is None:
        raise ConfigError('give --prompt TEXT, such as --prompt "a green heart, in the style of noto", or --like FILE')
    if arguments.prompt and arguments.like is not None:
        raise ConfigError("--prompt draws a text and --like a picture: give one of the two")
    empty = [text for text in arguments.prompt if not words_of(text)]
    if empty:
        raise ConfigError(f"--prompt {empty[0]!r} says nothing: sde-gen run --data emoji draws pictures of no text")
    if arguments.like is not None and not arguments.like.is_file():
        raise ConfigError(f"--like {arguments.like}: it is not there")


def _prompts(parts: TextParts, arguments: argparse.Namespace, methods: Sequence[str], strengths: Sequence[float], say: Say) -> Path:
    prompts, each = arguments.prompt, arguments.samples
    columns: dict[str, Tensor] = {}
    scores: dict[str, Any] = {"prompts": prompts, "samples": each, "steps": arguments.steps, "seconds_of_training": parts.seconds}
    for method in methods:
        for strength in strengths:
            began = time.monotonic()
            asked = [prompt for prompt in prompts for _ in range(each)]
            name = f"{method} {strength:g}"
            columns[name] = parts.draw(method, asked, strength, arguments.steps, arguments.seed)
            of_prompts = judged(parts.clip("judge"), columns[name], asked, parts.texts)
            scores[name] = {"rank": of_prompts, "seconds": time.monotonic() - began}
            say(f"{name:<16} right prompt among {len(set(parts.texts) | set(prompts))} captions: rank {_listed(of_prompts)}")
    strange = sorted({word for prompt in prompts for word in words_of(prompt)} - {word for text in parts.texts for word in words_of(text)})
    if strange:
        say(f"words     {', '.join(strange)}: not in the training captions, read by their letters alone")
    path = report.picture_conditions(
        columns, [_in_letters(prompt) for prompt in prompts], parts.directory / "text.png", parts.data.value_range
    )
    write_text(parts.directory / "text.json", to_json(scores, 1))
    say(f"pictures  {path}")
    say(f"numbers   {parts.directory / 'text.json'}")
    return parts.directory


@torch.no_grad()
def judged(judge: CLIP, x: Tensor, prompts: Sequence[str], others: Sequence[str]) -> list[float]:
    """The place of each picture's own prompt among all captions and prompts, by the judge's similarity; 1 is the nearest."""
    every = list(dict.fromkeys([*prompts, *filter(None, others)]))
    place = {text: k for k, text in enumerate(every)}
    right = torch.zeros(len(x), len(every), dtype=torch.bool)
    right[torch.arange(len(x)), torch.tensor([place[prompt] for prompt in prompts])] = True
    similarity = (judge.embed_images(x) @ judge.embed_texts(every).T).cpu()
    found: list[float] = ranks(similarity, right).tolist()
    return found


def _signature(clip: CLIP) -> str:
    """Changes with the weights."""
    crc = 0
    for value in clip.state_dict().values():
        crc = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), crc)
    return f"{crc:08x}"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:12]) + (", ..." if len(values) > 12 else "")


def _in_letters(text: str) -> str:
    """A text with the name of each emoji in its place, for which the pictures' font has no glyph."""
    return "".join(one if ord(one) < 0x2190 else f"[{unicodedata.name(one, 'symbol').lower()}]" for one in text)


def _variations(parts: TextParts, arguments: argparse.Namespace, strengths: Sequence[float], say: Say) -> Path:
    try:
        given = _picture(arguments.like, parts.data.shape)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--like {arguments.like}: {error}") from error
    columns: dict[str, Tensor] = {}
    how: dict[str, Any] = {"solver": "dpm", "steps": arguments.steps}
    for strength in strengths:
        decoder: Denoiser = parts.decoder if strength == 1 else guide(parts.decoder, strength)
        whole = UnCLIP(parts.clip("clip"), None, decoder, how, how)
        columns[f"strength {strength:g}"] = whole.variations(given, arguments.samples, arguments.seed)[0].cpu()
    path = report.picture_conditions(
        columns, [arguments.like.name], parts.directory / "like.png", parts.data.value_range, maps={"picture": given}
    )
    say(f"pictures  {path}")
    return parts.directory


def _picture(path: Path, shape: Sequence[int]) -> Tensor:
    """A picture file as (1, C, H, W) of 0 .. 255: the middle square, on white where it is transparent."""
    with Image.open(path) as image:
        rgba = image.convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L" if shape[0] == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(on_white, (shape[2], shape[1]), Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(np.atleast_3d(pixels).transpose(2, 0, 1).copy())[None]
