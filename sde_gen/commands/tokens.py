"""Discrete diffusion on the command line: text and images of few levels, trained, measured, sampled and filled in."""

from __future__ import annotations

import argparse
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import report
from ..conditions import Label, fit_condition
from ..data import rows_drawn
from ..data.text import UNDERSCORE, UNKNOWN, Alphabet, ngram_bits, read_given
from ..data.write import DataDescription, write_samples
from ..locks import held
from ..networks import summary
from ..report.files import write_text
from ..tokens import PROCESSES, SAMPLERS, GuidedTokens, TokenDenoiser, TokenModel, sample_tokens, token_bound
from ..training import CheckpointError, TrainSettings, read_extra
from ..training.tokens import TokenObjective, build_token_model, load_tokens
from ..unknown_numbers import shown_estimate, to_json
from .config import ConfigError
from .parts import Part
from .sample_metrics import LEAST_PART, measure
from .token_data import TokenData
from .training_files import category_names

Say = Callable[[str], None]
OPTIONS: dict[str, dict[str, Any]] = {
    "transformer": {"width": 128, "depth": 4},
    "unet": {"width": 32, "multipliers": [1, 2], "attention": [1]},
}
TRAIN_SCORED, SAMPLED_AT_ONCE = 300, 256
EXAMPLES = """examples:
  %(prog)s                                                     digits as 17 levels: a minute or two
  %(prog)s --data book.txt --length 128 --train-seconds 600    text, character by character
  %(prog)s --data book.txt --infill "It was a ____ and stormy night"     each _ is filled in; nothing is trained anew
  %(prog)s --labels --label 3 --guidance 2                     digits of one class
  sde-gen sample --run runs/book.txt-tokens --out new.txt --samples 20    more text"""


@dataclass(frozen=True)
class TokenSettings:
    """What is trained, in what a checkpoint is compared by: another value of one of these is another network."""

    data: str
    process: str
    network: str
    length: int
    labels: bool
    steps: int
    seconds: float | None
    batch: int
    lr: float
    dropout: float
    seed: int


def add_tokens_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `tokens`."""
    parser.add_argument("--data", metavar="DATA", default="digits", help="a text file, or images of whole numbers (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="the run directory (default runs/DATA-tokens)")
    parser.add_argument("--process", choices=list(PROCESSES), default="absorbing", help="how symbols are corrupted (default %(default)s)")
    parser.add_argument("--network", choices=["unet", "transformer"], help="default: transformer for text, unet for images")
    parser.add_argument("--length", metavar="L", type=int, default=128, help="characters of a window of text (default %(default)s)")
    parser.add_argument("--labels", action="store_true", help="tell the network the classes of images")
    parser.add_argument("--train-steps", metavar="N", type=int, default=2500, help="of training (default %(default)s)")
    parser.add_argument("--train-seconds", metavar="S", type=float, help="training ends after this time")
    parser.add_argument("--batch", metavar="N", type=int, default=64, help="of training (default %(default)s)")
    parser.add_argument("--lr", metavar="X", type=float, default=2e-3, help="the highest learning rate (default %(default)s)")
    parser.add_argument("--dropout", metavar="P", type=float, default=0.1, help="in the network (default %(default)s)")
    parser.add_argument("--retrain", action="store_true", help="train again where the directory holds a network")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default="ancestral", help="default %(default)s")
    parser.add_argument("--steps", metavar="T", type=int, help="network calls of a sample (default: as many as it has entries)")
    parser.add_argument("--samples", metavar="N", type=int, help="default: 500 images, 8 texts")
    parser.add_argument("--label", metavar="CLASS", help="samples of one class, in the data's own word for it")
    parser.add_argument("--guidance", metavar="W", type=float, default=1.0, help="strength towards the class (default %(default)s: none)")
    parser.add_argument("--infill", metavar="TEXT", help="fill in each _ of a text, so many --samples times, and do nothing else")
    parser.add_argument("--draws", metavar="N", type=int, default=32, help="corruptions of each item for the bound (default %(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights, batches and samples (default %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--threads", metavar="N", type=int, help="of the CPU")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def tokens_run(arguments: argparse.Namespace, device: torch.device, say: Say = print) -> Path:
    """Train or reuse, measure, sample; gives the run directory. ConfigError, one line, for bad input."""
    for name, least in (("samples", 1), ("steps", 1), ("draws", 1), ("batch", 1), ("train_steps", 1), ("length", 2), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    data = TokenData(arguments.data, arguments.length, arguments.labels, arguments.seed)
    directory = arguments.out or Path("runs") / f"{Path(arguments.data).name}-tokens"
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file: --out takes a directory")
    network = arguments.network or ("unet" if data.text is None else "transformer")
    of_data = arguments.data if data.text is None else Path(arguments.data).name
    settings = TokenSettings(
        *(of_data, arguments.process, network, data.shape[-1], arguments.labels, arguments.train_steps, arguments.train_seconds),
        *(arguments.batch, arguments.lr, arguments.dropout, arguments.seed),
    )
    _check_sampling(arguments, data)
    count = arguments.samples or (500 if data.text is None else 8)
    given = None
    if arguments.infill is not None:
        assert data.text is not None
        given = _given(data.text.alphabet, arguments.infill, data.shape[-1], count)
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory, "wait for it, or --out DIR works beside it"):
        how = (device, arguments.retrain, not arguments.no_progress, say)
        model = (None if given is None or arguments.retrain else _there(directory, settings, data, device)) or _trained(
            directory, settings, data, *how
        )
        scores: dict[str, Any] = {}
        if given is None:
            scores |= _measured(model, data, arguments.draws, arguments.seed, say)
        cond = _classes(model, data, arguments.label, count)
        x = _drawn(model, count, arguments, cond, given, say)
        place = directory / "samples"
        place.mkdir(exist_ok=True)
        if data.text is not None:
            texts = [data.text.alphabet.decode(one.flatten()) for one in x]
            shown = texts if given is None else [text[: len(arguments.infill)] for text in texts]
            path = place / ("infilled.txt" if given is not None else f"{arguments.sampler}.txt")
            write_text(path, "\n\n".join(shown) + "\n")
            for text in shown[: 2 if given is None else len(shown)]:
                say(f"text      {text!r}")
        else:
            assert data.images is not None
            path = place / f"{arguments.sampler}.png"
            report.picture_samples(x.float(), path, data.images.train, data.images.value_range)
            of_class = None if cond is None else cond["label"]
            enough = count >= LEAST_PART
            found = measure(data.images, x.float(), directory, arguments.seed, not arguments.no_progress, of_class) if enough else {}
            scores[f"samples, {arguments.sampler}"] = found
            if "frechet_distance" in found:
                line = f"Frechet   distance to the training data {shown_estimate(found['frechet_distance'], 3)}"
                beside = found.get("held_out_frechet_distance")
                say(line + (f"; held-out real data: {shown_estimate(beside, 3)}" if beside else "") + f" (features of {data.images.name})")
        say(f"samples   {path}")
        if given is None:
            training = read_extra(directory / "checkpoint")
            kept = {name: training[name] for name in ("steps", "seconds", "identity", "environment")}
            write_text(directory / "metrics.json", to_json({"training": kept, **scores}, 1))
            say(f"numbers   {directory / 'metrics.json'}")
    return directory


def _check_sampling(arguments: argparse.Namespace, data: TokenData) -> None:
    """ConfigError, before any training, for samples that could not be drawn after it."""
    if arguments.infill is not None and data.text is None:
        raise ConfigError("--infill is for text")
    if arguments.process != "absorbing" and (arguments.infill is not None or arguments.sampler in ("first_hitting", "confidence")):
        what = "--infill" if arguments.infill is not None else f"--sampler {arguments.sampler}"
        raise ConfigError(f"{what} is for a process whose masks show what is not known: --process absorbing")
    for flag, given in (("--label", arguments.label is not None), ("--guidance", arguments.guidance != 1)):
        if given and not arguments.labels:
            raise ConfigError(f"{flag} needs a network that is told classes: --labels")
    if not math.isfinite(arguments.guidance):
        raise ConfigError(f"--guidance must be finite, got {arguments.guidance}")
    if arguments.label is not None and data.images is not None:
        names = [str(name) for name in category_names(data.images, "label") or ()]
        if arguments.label not in names:
            raise ConfigError(f"--label {arguments.label}: the classes are {', '.join(names)}")


def _there(directory: Path, settings: TokenSettings, data: TokenData, device: torch.device) -> TokenModel | None:
    """The network of these data that is trained already, by whatever flags of training; None where none is."""
    try:
        extra = read_extra(directory / "checkpoint")
        same = {"process": settings.process, "length": settings.length, "items": data.signature}
        if extra["complete"] and {name: extra["identity"][name] for name in same} == same:
            return load_tokens(directory / "checkpoint", device=device)
    except (CheckpointError, KeyError, TypeError):
        pass  # `_trained` says what is wrong with it
    return None


def _trained(
    directory: Path, settings: TokenSettings, data: TokenData, device: torch.device, retrain: bool, show: bool, say: Say
) -> TokenModel:
    """The run's network: reused where it is there, gone on with where its training was stopped, else trained now."""
    checkpoint = directory / "checkpoint"
    part = Part(checkpoint, asdict(settings) | {"items": data.signature}, data.about)
    known, state = (None, None) if retrain else part.earlier(say)
    if known is not None and state is None:
        return load_tokens(checkpoint, device=device)
    try:
        specs: dict[str, Any] = {}
        cond: dict[str, Tensor] = {}
        of_test: dict[str, Tensor] = {}
        if settings.labels:
            images = data.images
            assert images is not None and images.train_labels is not None
            cond["label"] = images.train_labels
            if images.test_labels is not None:  # else the network is checked on training items, whose classes are known
                of_test["label"] = images.test_labels
            specs["label"] = fit_condition("label", images.train_labels, data.shape[1:], names=category_names(images, "label"))
        options: dict[str, Any] = {"dropout": settings.dropout}
        options |= OPTIONS[settings.network]
        model = build_token_model(
            data.shape, data.symbols, settings.process, settings.network, specs, data.text is None, options, seed=settings.seed
        )
        training = TrainSettings(
            steps=settings.steps, batch=settings.batch, lr=settings.lr, seed=settings.seed, max_seconds=settings.seconds, evaluations=6
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    assert isinstance(model.network, torch.nn.Module)
    channels = TokenModel.channels(model.process, data.shape, model.ordered)[0]
    say(f"data      {len(data.train)} items of {'x'.join(map(str, data.shape))}, {data.symbols} symbols; {len(data.test)} held out")
    if data.images is not None and data.images.source is not None:
        say(f"          of {len(data.images.source)}, of which no more fit in memory: the others are not trained on")
    say(f"network   {summary(model.network, (channels, *data.shape[1:]))}")

    result = part.train(
        *(model, data.train, training, device, show, state),
        cond=cond or None,
        held_out=data.test,
        held_out_cond=of_test or None,
        objective=TokenObjective(training),
    )
    say(f"trained   {result.steps} steps of {settings.batch} in {result.seconds:.0f} s")
    write_text(directory / "history.json", to_json({"history": result.history, "linear": result.linear}, 1))
    report.plot_loss(result.history, directory / "loss.png", result.linear)
    return result.model  # type: ignore[return-value]


def _measured(model: TokenModel, data: TokenData, draws: int, seed: int, say: Say) -> dict[str, Any]:
    """The bound on held-out and on drawn training items, in bits an entry, and of text what gzip and five-grams take."""
    unit = "bits per character" if data.text is not None else "bits/dim"
    found: dict[str, Any] = {"unit": unit, "draws": draws}
    for name, x, part in (("held_out", data.test, "test"), ("training", data.train, "train")):
        rows = rows_drawn(len(x), len(x) if name == "held_out" else min(len(x), TRAIN_SCORED), seed)
        if name == "held_out" and data.images is not None and data.images.test is None:
            continue  # there is nothing that training has not seen
        labels = None if not model.encoders or data.images is None else getattr(data.images, f"{part}_labels")
        began = time.monotonic()
        cond = None if labels is None else {"label": labels[rows]}
        if model.encoders and cond is None:
            say(f"          {name.replace('_', '-')} items have no classes: their bound is that without")
        bound = token_bound(model, x[rows], draws, cond=cond, seed=seed)
        found[name] = {"value": bound.value, "std_error": bound.std_error, "items": len(rows), "seconds": time.monotonic() - began}
        said = "at most" if name == "held_out" else "training items at most"
        say(f"{'bound' if name == 'held_out' else '':9} {said} {bound.value:.4f} +- {bound.std_error:.4f} {unit} ({len(rows)} items)")
    if data.text is not None:
        alphabet = data.text.alphabet  # all are asked for the same symbols, of which rare characters are one
        text, held_out = (alphabet.decode(alphabet.encode(part)) for part in (data.text.text, data.text.held_out))
        found["unknown"] = sum(one != other for one, other in zip(held_out, data.text.held_out, strict=True)) / len(held_out)
        if found["unknown"]:
            share = f"{found['unknown']:.2%} of the held-out characters are of none of the {len(alphabet.characters)} symbols"
            say(f"          {share}; they are read as one, {UNKNOWN}, by all that are compared")
        raw = text.encode()
        alone, both = (len(zlib.compress(part, 9)) for part in (raw, raw + held_out.encode()))
        found["gzip"] = 8 * len(zlib.compress(held_out.encode(), 9)) / len(held_out)
        found["gzip_after_training_text"] = 8 * (both - alone) / len(held_out)
        found["five_gram"] = ngram_bits(text, held_out)
        say(f"          gzip {found['gzip']:.3f}, 5-gram of the training text {found['five_gram']:.3f} {unit}, on the same held-out text")
    return {"bound": found}


def _given(alphabet: Alphabet, text: str, length: int, count: int) -> Tensor:
    try:
        if len(text) <= length and UNDERSCORE not in text:
            raise ValueError(f"{text!r} has no {UNDERSCORE}, which stands for a character to be filled in")
        return read_given(alphabet, text, length).expand(count, 1, -1)
    except ValueError as error:
        raise ConfigError(f"--infill: {error}") from error


def _classes(model: TokenModel, data: TokenData, label: str | None, count: int) -> dict[str, Tensor] | None:
    """The classes of samples: one that is asked for, else those of drawn training items; None for a model that takes none."""
    if "label" not in model.encoders or data.images is None:
        return None
    if label is None:
        return data.images.draw_conditions(["label"], count, 0)
    names = [str(name) for name in category_names(data.images, "label") or ()]
    return {"label": torch.full((count,), names.index(label))}


def _of_class(model: TokenModel, label: str, count: int) -> dict[str, Tensor]:
    """The class that is called so, for each of `count` samples; ConfigError for a network that is told none, or not this one."""
    told = model.encoders.get("label")
    if not isinstance(told, Label):
        raise ConfigError(f"--label {label}: this network is told no classes")
    names = [told.word(number) for number in range(told.classes)]
    if label not in names:
        raise ConfigError(f"--label {label}: the classes are {', '.join(names)}")
    return {"label": torch.full((count,), names.index(label))}


def _drawn(
    model: TokenModel,
    count: int,
    chosen: argparse.Namespace,
    cond: dict[str, Tensor] | None,
    given: Tensor | None,
    say: Say,
    batch: int = SAMPLED_AT_ONCE,
) -> Tensor:
    """So many samples as the flags ask for."""
    began = time.monotonic()
    show = not chosen.no_progress
    try:
        asked: TokenDenoiser = model if chosen.guidance == 1 else GuidedTokens(model, chosen.guidance)
        out = sample_tokens(asked, count, chosen.sampler, chosen.steps, chosen.seed, cond, given, batch, progress=show)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    say(f"sampled   {count} with {chosen.sampler}: {int(out.nfe.max())} network calls each, {time.monotonic() - began:.1f} s")
    return out.x.cpu()


def holds_tokens(directory: Path) -> bool:
    """Whether a run directory is one of this command."""
    try:
        return "items" in read_extra(directory / "checkpoint").get("identity", {})
    except CheckpointError:
        return False


def tokens_to_file(arguments: argparse.Namespace, device: torch.device, say: Say = print) -> Path:
    """Samples of a run of tokens as a file, by the flags of `sample`: text, one after another with an empty line between them, or images
    as `write_samples` does. ConfigError, one line, for flags that are not for symbols."""
    directory, out, count = arguments.run, arguments.out, arguments.samples
    for flag in ("grid", "rule", "prompt", "cond"):
        if getattr(arguments, flag) not in (None, []):
            raise ConfigError(f"--{flag} is not for a network of symbols")
    path, extra = Path(out), read_extra(directory / "checkpoint")
    at_once = SAMPLED_AT_ONCE if arguments.batch_size is None else arguments.batch_size
    model = load_tokens(directory, device=device)
    sampler, seed = arguments.solver or "ancestral", arguments.seed or 0
    if count < 1:
        raise ConfigError(f"--samples must be at least 1, got {count}")
    if sampler not in SAMPLERS:
        raise ConfigError(f"--solver {sampler}: samplers of symbols are {', '.join(SAMPLERS)}")
    strength = 1.0 if arguments.guidance is None else arguments.guidance
    if not math.isfinite(strength):
        raise ConfigError(f"--guidance must be finite, got {strength}")
    if strength != 1 and arguments.label is None:
        raise ConfigError("--guidance pushes towards a class: --label names it")
    cond = None if arguments.label is None else _of_class(model, arguments.label, count)
    chosen = argparse.Namespace(sampler=sampler, seed=seed, steps=arguments.steps, guidance=strength, no_progress=arguments.no_progress)
    if path.exists() and not arguments.overwrite:
        raise ConfigError(f"{path} is there already: --overwrite replaces it")
    if "alphabet" in extra:
        if path.suffix.lower() != ".txt":
            raise ConfigError(f"--out {out}: samples of text are written as .txt")
        x = _drawn(model, count, chosen, cond, None, say, at_once)
        alphabet = Alphabet(tuple(extra["alphabet"]))
        write_text(path, "\n\n".join(alphabet.decode(one.flatten()) for one in x) + "\n")
    else:
        about = DataDescription.from_config(extra["data_description"])
        form = about.form(out)
        about.check(form)
        x = _drawn(model, count, chosen, cond, None, say, at_once)
        write_samples(path, form, about, count, lambda: iter([(about.finish(x.float(), form)[0], None)]), False)
    say(f"samples   {path}")
    return path
