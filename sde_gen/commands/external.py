"""Other libraries' checkpoints on the command line: a run directory made of one, and a check of what was said of it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..data.dataset import subset
from ..data.write import DataDescription
from ..external import FORMATS, Check, ExternalModel, check_external, load_external
from ..locks import held
from ..models.moments import Moments
from ..models.score import ScoreModel
from ..networks import NETWORKS
from ..report.files import write_text
from ..sdes import SDES
from ..training import CheckpointError, load, read_extra, save
from ..unknown_numbers import to_json
from .config import ConfigError, RunConfig, merge, read_config, read_yaml, resolve
from .run_data import check, config_of_run, load_data
from .training_files import environment

Say = Callable[[str], None]
MOST_MOMENTS = 1 << 25
"""Numbers of the training data that the moments of an imported model are taken from."""
IMPORT_EXAMPLES = """examples:
  %(prog)s checkpoint_8.pth --preset vp/cifar10_ddpmpp_continuous --data cifar10 --data-root DIR --out runs/ddpmpp
  %(prog)s edm-cifar10-32x32-cond-vp.pkl --data cifar10 --data-root DIR --out runs/edm
  %(prog)s ddpm-cifar10-32/ --data cifar10 --data-root DIR --out runs/ddpm
  %(prog)s 256x256_diffusion_uncond.pt --preset 256x256_diffusion_uncond --data photos/ --image-size 256 --out runs/adm
  %(prog)s mine.pt --set size=64 --set steps=1000 --set schedule=cosine ... --data photos/ --image-size 64 --out runs/mine

The run directory takes every command: sde-gen sample, likelihood, compare, doctor, report --run DIR. Nothing in the file is executed.
What the file does not say (--preset, --facts, --set) is asked for, never guessed; sde-gen check says whether it fits."""
CHECK_EXAMPLES = """examples:
  %(prog)s checkpoint_8.pth --preset vp/cifar10_ddpmpp_continuous --data cifar10 --data-root DIR
  %(prog)s --run runs/ddpmpp

Says in one line whether the stated clock, prediction, range, channels, attention and weights fit, or which of them does not. Exits with 1
where one does not fit."""


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what a file holds and which data it belongs to."""
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(FORMATS)} (default: as the file's keys say)")
    parser.add_argument(
        "--preset", metavar="NAME", help="a published configuration, as ve/cifar10_ncsnpp_continuous; an unknown one lists all"
    )
    parser.add_argument("--facts", metavar="FILE", help="YAML or JSON of facts, or of the library's own configuration")
    parser.add_argument("--set", metavar="FACT=VALUE", action="append", default=[], help="a fact that the file does not say (repeatable)")
    parser.add_argument("--weights", metavar="NAME", default="ema", help="ema, the averaged ones, or raw (default %(default)s)")
    parser.add_argument(
        "--range", metavar="X", nargs=2, type=float, help="values that are -1 and 1 in the network (default: the data's range)"
    )
    parser.add_argument("--data", metavar="NAME", help="data set or path of the user's own, as for run")
    parser.add_argument("--data-root", metavar="DIR", help="directory of a named set's files")
    parser.add_argument("--image-size", metavar="N", type=int, help="resize images from files: shorter side to N, middle square")


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `import`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="checkpoint of another library, or a folder of diffusers")
    add_file_flags(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="run directory, new")


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `check`."""
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="checkpoint of another library, or a folder of diffusers")
    add_file_flags(parser)
    parser.add_argument("--run", metavar="DIR", type=Path, help="instead of a file: a run directory that import made, with its data")
    parser.add_argument("--images", metavar="N", type=int, help="pictures to look at (default 16)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of their noise (default %(default)s)")
    parser.add_argument("--all", action="store_true", help="print the error of every alternative")


def facts_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of a file, as `load_external` takes it."""
    found: dict[str, Any] = read_config(arguments.facts) if arguments.facts else {}
    if arguments.preset is not None:
        found["preset"] = arguments.preset
    for text in arguments.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set takes FACT=VALUE, as in size=64, got {text!r}")
        try:
            found[name] = read_yaml(value)
        except Exception as error:
            raise ConfigError(f"--set {name}: cannot read the value {value[:80]!r}") from error
    return found


def read_foreign(arguments: argparse.Namespace, data: Dataset, weights: str | None = None) -> ExternalModel:
    """The model in the file that the flags name, in the units of `data`; ConfigError or CheckpointError where it is none."""
    value_range = tuple(arguments.range) if arguments.range else data.value_range
    if value_range is None:
        raise ConfigError(f"the range of {data.name} is not known: give --range LOW HIGH, the values that are -1 and 1 in the network")
    try:
        model = load_external(arguments.file, arguments.format, facts_given(arguments) or None, weights or arguments.weights, value_range)
    except CheckpointError:
        raise
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    if tuple(model.network.shape) != tuple(data.shape):
        raise ConfigError(
            f"the network in {arguments.file} is for pictures of {tuple(model.network.shape)}, {data.name} has {tuple(data.shape)}"
        )
    return model


def _data_layer(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is None:
        raise ConfigError("give --data, the data that the network was trained on or is to be compared with")
    named = {"name": arguments.data, "root": arguments.data_root, "size": arguments.image_size}
    return {"data": {key: value for key, value in named.items() if value is not None}}


def import_run(arguments: argparse.Namespace, say: Say = print) -> None:
    """Make a run directory of a foreign checkpoint: its network, process and units, with the data it is to be used with."""
    directory = arguments.out
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is there already and not empty: give another --out")
    config = resolve(_data_layer(arguments)).anchored()
    data = load_data(config)
    model = read_foreign(arguments, data)
    classes = model.network.classes
    if classes is not None and classes != data.classes:
        raise ConfigError(f"the network in {arguments.file} knows {classes} classes, {data.name} has {data.classes or 'no labels'}")
    config = _config_of(model, config, classes is not None)
    check(config, data)
    model = with_moments(model, data)
    extra = {"complete": True, "steps": 0, "seconds": 0.0, "skipped": 0, "environment": environment("cpu"), "identity": config.identity()}
    extra |= {"data": data.signature(), "data_description": DataDescription.of(data).to_config(), "source": model.source}
    directory.mkdir(parents=True, exist_ok=True)
    with held(directory):
        save(model, directory / "checkpoint", extra=extra)
        write_text(directory / "config.yaml", config.to_yaml())
    source = model.source
    say(f"format    {source['format']}, read as {source['read']}, SHA-256 {source['sha256'][:16]}...")
    say(f"weights   {source['average']}")
    for name, fact in source["facts"].items():
        say(f"fact      {name} = {to_json(fact['value'])} ({fact['from']})")
    say(f"licence   {source['licence']}")
    say(f"run       {directory}: sde-gen sample, likelihood, compare, doctor, check --run {directory}")


def _config_of(model: ExternalModel, config: RunConfig, labels: bool) -> RunConfig:
    """The configuration that describes an imported model on its data."""
    sde = next(name for name, kind in SDES.items() if type(model.sde) is kind)
    network = next(name for name, kind in NETWORKS.items() if type(model.network) is kind)
    learned = model.variance is not None
    layer: dict[str, Any] = {
        "data": {"labels": labels},
        "sde": {"name": sde, "settings": dict(model.sde.settings)},
        "model": {
            "network": network,
            "options": dict(model.network.options),
            "prediction": model.prediction,
            "normalizer": "range",
            "variance": model.variance,
        },
        "training": {"objective": "hybrid"} if learned else {},
        "sampling": {"solver": "dpm"},
    }
    return resolve(merge(config.model_dump(mode="json"), layer))


def with_moments(model: ExternalModel, data: Dataset) -> ExternalModel:
    """The model with the moments of the data, which say what the best linear denoiser knows, and where it has none their deviation."""
    count = max(64, MOST_MOMENTS // data.train[0].numel())
    part = data.train if len(data.train) <= count else data.train[subset(len(data.train), count, 0)]
    assert model.normalizer is not None
    z = model.normalizer.encode(part)
    settings = model.settings()
    if settings["data_std"] is None:
        settings["data_std"] = float(z.double().square().mean().sqrt())
    other = ExternalModel(model.network, model.sde, **settings, normalizer=model.normalizer, moments=Moments.fit(z))
    other.source = model.source
    return other.eval()


def check_run(arguments: argparse.Namespace, say: Say = print) -> bool:
    """Check what was said of a network on a few pictures of its data; whether it fits."""
    if (arguments.file is None) == (arguments.run is None):
        raise ConfigError("give a FILE, or --run DIR")
    others: dict[str, ScoreModel] = {}
    if arguments.run is not None:
        config = config_of_run(arguments.run)
        data = load_data(config)
        model: ScoreModel = _of_run(arguments.run)
    else:
        data = load_data(resolve(_data_layer(arguments)))
        model = read_foreign(arguments, data)
        other = "raw" if arguments.weights == "ema" else "ema"
        with contextlib.suppress(CheckpointError, ConfigError):
            found_other = read_foreign(arguments, data, other)
            if found_other.source["average"] not in (model.source["average"], "only"):
                others[f"{other} weights"] = found_other
    pool, labels = (data.train, data.train_labels) if data.test is None else (data.test, data.test_labels)
    count = min(16, len(pool)) if arguments.images is None else arguments.images
    if not 4 <= count <= len(pool):
        raise ConfigError(f"--images must be in 4 .. {len(pool)}, got {count}")
    rows = subset(len(pool), count, arguments.seed)
    cond = {}
    classes = getattr(model.network, "classes", None)
    if classes is not None:
        if labels is None or data.classes != classes:
            raise ConfigError(f"the network needs labels of {classes} classes, which {data.name} has not")
        cond = {"label": labels[rows]}
    found: Check = check_external(model, pool[rows], cond, others, arguments.seed)
    say(found.sentence)
    if arguments.all:
        for name, error in sorted(found.others.items(), key=lambda item: item[1]):
            say(f"{error:10.4g}  {name}")
    if arguments.run is not None:
        write_text(arguments.run / "check.json", to_json(asdict(found), 1))
    return found.right


def _of_run(directory: Path) -> ScoreModel:
    """The model of a run with what its checkpoint says of where it is from."""
    model = load(directory / "checkpoint")
    source = read_extra(directory / "checkpoint").get("source")
    if not isinstance(source, dict):
        return model
    found = ExternalModel(model.network, model.sde, **model.settings(), normalizer=model.normalizer, moments=model.moments).eval()
    found.source = source
    return found
