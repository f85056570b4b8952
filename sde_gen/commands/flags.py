"""The flags of each command, and the configuration that they ask for."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data import DATASETS, PATHS, SOURCES
from ..data.assemble import SPLITS
from ..data.decode import MODES
from ..data.formats import NAMED
from ..data.write import FORMATS
from ..external.feature_networks import FEATURES
from ..guidance import GUIDANCE
from ..networks import NETWORKS
from ..sdes import SDES
from ..solvers import GRIDS, SOLVERS
from ..training import OBJECTIVES, SHARDINGS
from .compare import CALLS, CompareSettings
from .config import ConfigError, merge, read_config, read_yaml
from .estimate_flags import add_estimate_flags
from .likelihood import LikelihoodSettings
from .noise_ends import AUTO

RUN_EXAMPLES = """examples:
  %(prog)s                                        train on digits with VP, sample with PC
  %(prog)s --sde vp --solver ode                  the same network again, sampled by the probability flow
  %(prog)s --solver angle --steps 8 --grid fitted   times fitted to the network first, kept in its checkpoint
  %(prog)s --sde ve --data gaussians8             eight Gaussians with VE
  %(prog)s --data mnist --data-root DIR           the four MNIST files in DIR
  %(prog)s --set training.lr=5e-4 --retrain       any key of --dry-run's output

A run directory holds config.yaml, checkpoint/, metrics.json, samples.png, denoising.gif, forward.png, loss.png,
snapshots/ (a few fixed-seed samples during training), solvers/<solver>/ with each solver's pictures and numbers, and
report.html with all of it on one page.
A second run with the same training settings reuses the trained network and only samples; with more --train-steps or --max-seconds
its training goes on, by the schedule of the longer one. One command at a time writes to a run directory; sample and report read it
at any time."""

FLAGS: dict[str, tuple[str, ...]] = {
    "data": ("data", "name"),
    "data_root": ("data", "root"),
    "labels": ("data", "labels"),
    "label_column": ("data", "label_column"),
    "image_size": ("data", "size"),
    "axes": ("data", "axes"),
    "missing": ("data", "missing"),
    "split": ("data", "split"),
    "group": ("data", "group"),
    "window": ("data", "window"),
    "stride": ("data", "stride"),
    "condition": ("data", "conditions"),
    "condition_map": ("data", "condition_map"),
    "captions": ("data", "captions"),
    "variable": ("data", "variable"),
    "mode": ("data", "mode"),
    "columns": ("data", "columns"),
    "sde": ("sde", "name"),
    "sigma_min": ("sde", "settings", "sigma_min"),
    "sigma_max": ("sde", "settings", "sigma_max"),
    "beta_max": ("sde", "settings", "beta_max"),
    "network": ("model", "network"),
    "train_steps": ("training", "steps"),
    "objective": ("training", "objective"),
    "chain_steps": ("training", "chain_steps"),
    "batch": ("training", "batch"),
    "lr": ("training", "lr"),
    "max_seconds": ("training", "max_seconds"),
    "accumulate": ("training", "accumulate"),
    "micro_batch": ("training", "micro_batch"),
    "workers": ("training", "workers"),
    "shard": ("training", "shard"),
    "solver": ("sampling", "solver"),
    "steps": ("sampling", "steps"),
    "grid": ("sampling", "grid"),
    "samples": ("sampling", "samples"),
    "features": ("sampling", "features"),
    "reference": ("sampling", "reference"),
}


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a run: everything but where and how it is carried out."""
    names: dict[str, Iterable[str]] = {"data": DATASETS, "sde": SDES, "network": NETWORKS, "solver": SOLVERS, "grid": GRIDS}
    what = parser.add_argument_group("what to run")
    what.add_argument("--config", metavar="FILE", help="YAML file over the data's defaults; flags override it")
    what.add_argument("--data", metavar="NAME", help=f"data set: {', '.join(names['data'])} (default digits), or your own: {PATHS}")
    what.add_argument("--data-root", metavar="DIR", help=f"directory of a named set's files ({', '.join(SOURCES)})")
    what.add_argument("--labels", action="store_true", default=None, help="train a class-conditional network")
    what.add_argument("--label-column", metavar="COLUMN", help="of a table: the column of class labels, by name or number from 0")
    what.add_argument("--image-size", metavar="N", type=int, help="resize images from files: shorter side to N, middle square")
    what.add_argument(
        "--axes", metavar="LETTERS", help="of an array: a letter for each axis, N items, C channels, L, HW or DHW space: NHWC"
    )
    what.add_argument(
        "--missing",
        metavar="VALUE",
        help="leave out items with such a cell: a number, nan, a table's word; mask, mask=VALUE: keep them out of fields; condition, "
        "condition=VALUE: tell the network where a table's gaps are",
    )
    what.add_argument("--split", metavar="NAME", help=f"how a tenth of one's own files is held out: {', '.join(SPLITS)} (default random)")
    what.add_argument("--group", metavar="COLUMN", help="column of a table, or array of an .npz, whose groups are held out whole")
    what.add_argument("--window", metavar="N", type=int, help="of a series, (T,), (T, C) or a table's rows in time: N rows are an item")
    what.add_argument("--stride", metavar="K", type=int, help="rows from the beginning of one window to the next (default: its length)")
    what.add_argument(
        "--condition",
        metavar="[NAME=]COLUMN",
        action="append",
        help="a column of a table (name or number), or an array of an .npz, that the network is told, under another name (repeatable)",
    )
    what.add_argument("--condition-map", metavar="DIR", help="folder or archive of images that the network is told, of the data's names")
    what.add_argument(
        "--captions", metavar="PATH", help="of images: a .csv or .tsv of file and caption, or a folder of .txt of their names"
    )
    what.add_argument(
        "--variable",
        metavar="NAME",
        action="append",
        help=f"of {', '.join(NAMED)}: the array that is the data (repeatable: channels)",
    )
    what.add_argument("--mode", metavar="NAME", help=f"convert images from files: {', '.join(MODES)} (default: all must be of one mode)")
    what.add_argument("--columns", metavar="FILE", help="of a table: a YAML file of what its columns are, {COLUMN: KIND}, or infer")
    what.add_argument("--sde", metavar="NAME", help=f"forward process: {', '.join(names['sde'])} (default vp)")
    what.add_argument("--sigma-min", metavar="X", type=_number_or_auto, help="smallest noise of VE, in normalised units, or auto")
    what.add_argument("--sigma-max", metavar="X", type=_number_or_auto, help="largest noise of VE, or auto: chosen from the data")
    what.add_argument("--beta-max", metavar="X", type=_number_or_auto, help="last beta of VP and sub-VP, or auto")
    what.add_argument("--network", metavar="NAME", help=f"network: {', '.join(names['network'])}")
    what.add_argument("--train-steps", metavar="N", type=int, help="optimiser steps; more than a trained network has had: it goes on")
    what.add_argument("--batch", metavar="N", type=int, help="training batch")
    what.add_argument("--objective", metavar="NAME", help=f"training loss: {', '.join(OBJECTIVES)} (dsm: continuous, the others: discrete)")
    what.add_argument("--chain-steps", metavar="N", type=int, help="length of the chain of a discrete objective (default 1000)")
    what.add_argument("--learned-variance", action="store_true", help="a network that predicts the reverse step's variance too")
    what.add_argument(
        "--drop",
        metavar="[NAME=]SHARE",
        action="append",
        default=[],
        help="share of the training that is not told a condition, of all or of one (repeatable: others are then always told; default 0.1)",
    )
    what.add_argument("--lr", metavar="X", type=float, help="peak learning rate")
    what.add_argument("--max-seconds", metavar="S", type=float, help="end training after this time (sampling and metrics follow it)")
    what.add_argument("--accumulate", metavar="N", type=int, help="compute each batch in N parts: less memory, the same gradients")
    what.add_argument("--micro-batch", metavar="N", type=int, help="compute each batch N samples at a time")
    what.add_argument("--workers", metavar="N", type=int, help="processes that read data larger than memory ahead")
    what.add_argument("--shard", metavar="NAME", help=f"spread a large network over torchrun's processes: {', '.join(SHARDINGS)}")
    what.add_argument("--solver", metavar="NAME", help=f"sampler: {', '.join(names['solver'])}, or auto (default pc)")
    what.add_argument("--steps", metavar="N", type=int, help="solver steps (ode: the most that a sample may take)")
    what.add_argument("--grid", metavar="NAME", help=f"time grid: {', '.join(names['grid'])}, or fitted (default: the solver's)")
    what.add_argument("--samples", metavar="N", type=int, help="how many samples are drawn and measured")
    add_features_flags(what)
    what.add_argument("--seed", metavar="N", type=int, help="of weights, data order and noise in training, and of sampling")
    what.add_argument("--sample-seed", metavar="N", type=int, help="of sampling alone: other samples of the same network")
    what.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="any key, as sde.settings.beta_max=15 (repeatable)")


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say where and how a run is carried out."""
    how = parser.add_argument_group("where and how")
    how.add_argument("--out", metavar="DIR", type=Path, help="run directory (default runs/<data>-<sde>)")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    add_threads_flag(how)
    how.add_argument("--download", action="store_true", help=f"first fetch what --data-root lacks of {', '.join(SOURCES)}")
    how.add_argument("--retrain", action="store_true", help="train again even where the directory holds a trained network")
    how.add_argument("--checkpoint-every", metavar="TIME", default="60s", help="save during training: 30s, 5m (default 60s)")
    how.add_argument("--tensorboard", action="store_true", help="event files of the training in tensorboard/ (pip install tensorboard)")
    how.add_argument(
        "--no-progress", action="store_true", help="no progress: a bar, or a line every half minute where stderr is not a terminal"
    )
    how.add_argument(
        "--dry-run", action="store_true", help="check everything, print what it costs and the resolved configuration, and stop"
    )


def add_features_flags(parser: argparse._ActionsContainer) -> None:
    """Which network's features images are compared in, and with what."""
    parser.add_argument("--features", metavar="NAME", help=f"compare images in features of: {FEATURES} (FID: inception:FILE of weights)")
    parser.add_argument("--reference", metavar="FILE", help=".npz of moments (mu, sigma) to compare with instead of the training data")


def add_threads_flag(parser: argparse._ActionsContainer) -> None:
    """How many threads compute."""
    what = "threads on the CPU (default: OMP_NUM_THREADS, else as many as cores are free; a training that goes on keeps its number)"
    parser.add_argument("--threads", metavar="N", type=int, help=what)


def _number_or_auto(text: str) -> float | str:
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or auto is needed, got {text!r}") from None


def layers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What the command line asks for, as configuration layers: the file, then the flags with --set over them."""
    asked: dict[str, Any] = {}
    for flag, (*sections, key) in FLAGS.items():
        value = getattr(arguments, flag)
        if flag == "columns" and value not in (None, "infer"):
            value = read_config(value)  # a run directory keeps what it says
        if value is not None:
            inner = asked
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[key] = value
    if arguments.drop:
        asked.setdefault("training", {})["drop"] = _drop(arguments.drop)
    if arguments.learned_variance:
        asked.setdefault("model", {})["variance"] = "learned_range"
        asked.setdefault("training", {}).setdefault("objective", "hybrid")
    if arguments.seed is not None:
        asked.setdefault("training", {})["seed"] = arguments.seed
        asked.setdefault("sampling", {})["seed"] = arguments.seed
    if arguments.sample_seed is not None:
        asked.setdefault("sampling", {})["seed"] = arguments.sample_seed
    found = [read_config(arguments.config)] if arguments.config else []
    for text in arguments.set:  # one layer: another solver drops the file's steps, and keeps those that stand beside it
        asked = merge(asked, _setting(text))
    return [*found, asked]


def _drop(texts: Sequence[str]) -> float | dict[str, float]:
    """The share of training that is not told the conditions: one number, or one by the name of each."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            raise ConfigError(f"--drop takes a share in [0, 1), or NAME=SHARE, got {text!r}") from None
        if name in found:
            raise ConfigError(f"--drop is given twice for {f'condition {name!r}' if name else 'all conditions'}: {' '.join(texts)}")
        found[name] = value
    if "" in found and len(found) > 1:
        raise ConfigError(f"--drop takes one share for all conditions or one by the name of each, got both: {' '.join(texts)}")
    return found.get("", found)


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set takes KEY=VALUE, as in sde.settings.beta_max=15, got {text!r}")
    try:
        nested: Any = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: cannot read the value {value[:80]!r}") from error
    if isinstance(nested, str):
        with contextlib.suppress(ValueError):
            nested = float(nested)  # YAML reads 1e-3 as text
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def add_named_run_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that name a run that is there, and where to work on it."""
    parser.add_argument("--run", metavar="DIR", type=Path, help="run directory (default: the default run's, trained if need be)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    add_threads_flag(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bars where a network is trained")


SAMPLE_EXAMPLES = """examples:
  %(prog)s --run runs/digits-vp --samples 1000 --out digits.npz     arrays x and, of a conditional network, label
  %(prog)s --run runs/energy.csv-vp --samples 500 --out new.csv     the table's own header and order of columns
  %(prog)s --run runs/faces-vp --samples 100 --out faces --solver dpm --steps 20    a folder of PNGs
  %(prog)s --run runs/energy.csv-vp --samples 500 --cond site=north --cond age=50 --guidance 2 --out north.csv
  torchrun --nproc-per-node 4 -- experiments/sample.py --run RUN --samples 1000000 --out many.npy

Samples are in the data's own units, whole numbers where the data are. Parts lie in a hidden folder beside the output until all are
there: the same command goes on from them after Ctrl-C or a kill, and any number of processes draws the same bits."""


def add_sample_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `sample`."""
    names = f"file ({', '.join(FORMATS)}), or a folder of PNGs, or of sound, TIFF or NIfTI files where the data were such"
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="run directory")
    parser.add_argument("--samples", metavar="N", type=int, required=True, help="how many")
    parser.add_argument("--out", metavar="PATH", required=True, help=names)
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out where it is there")
    parser.add_argument("--solver", metavar="NAME", help=f"{', '.join(SOLVERS)}, or auto (default: the run's)")
    parser.add_argument("--steps", metavar="N", type=int, help="solver steps (default: the run's, or another solver's own)")
    parser.add_argument("--grid", metavar="NAME", help=f"time grid: {', '.join(GRIDS)}, or fitted (default: as for --steps)")
    parser.add_argument("--seed", metavar="N", type=int, help="of the noise (default: the run's)")
    parser.add_argument("--batch-size", metavar="N", type=int, help="samples at a time (default: the run's)")
    parser.add_argument("--label", metavar="LABEL", help="of a conditional network: this class alone, by the data's own label")
    parser.add_argument(
        "--cond",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a condition: a category's word, a text (or a .txt file, a line a sample), numbers separated by commas (nan: not known), "
        "a .npy file of one row or one a sample, of a map an image too, or nothing for not given (repeatable)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="short for --cond caption=TEXT, of a network that is told captions")
    parser.add_argument("--guidance", metavar="X", type=float, help="push samples towards their conditions: 1 not at all, 2 or 3 strongly")
    parser.add_argument("--rule", metavar="NAME", help=f"rule of guidance: {', '.join(GUIDANCE)} (default cfg)")
    parser.add_argument(
        "--threads", metavar="N", type=int, default=1, help="of each process on the CPU; bits may depend on it (%(default)s)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


LIKELIHOOD_EXAMPLES = """examples:
  %(prog)s                                        the default run's network (trained now if there is none)
  %(prog)s --run runs/digits-ve                   the network of that run
  %(prog)s --images 50 --draws 4                  fewer images, more draws for each: the error of dequantisation is known

likelihood/ in the run directory gets likelihood.json, histogram.png, extremes.png and terms.png (the bound step by step)."""


def add_likelihood_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `likelihood`."""
    default = LikelihoodSettings()
    add_named_run_flags(parser)
    parser.add_argument("--images", metavar="N", type=int, default=default.images, help="of training and held-out data (%(default)s)")
    add_estimate_flags(parser, default, "image")


COMPARE_EXAMPLES = """examples:
  %(prog)s                                        the default run's network (trained now if there is none)
  %(prog)s --run runs/digits-ve --solvers ancestral,ddim,dpm_sde --calls 10,50
  %(prog)s --samples 1000                         smaller error bars, in proportion longer
  %(prog)s --run runs/cifar10-vp --features inception:pt_inception-2015-12-05-6726825d.pth     by FID

compare/ in the run directory gets table.md, compare.json, distance.png and samples.png."""


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `compare`."""
    default = CompareSettings()
    add_named_run_flags(parser)
    parser.add_argument("--solvers", metavar="NAMES", default=",".join(default.solvers), help="separated by commas (default %(default)s)")
    calls = f"network calls, separated by commas (default {','.join(map(str, CALLS))}; for ancestral 200 and 1000 too)"
    parser.add_argument("--calls", metavar="NUMBERS", help=calls)
    parser.add_argument("--samples", metavar="N", type=int, default=default.samples, help="of each solver at each budget (%(default)s)")
    add_features_flags(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=default.seed, help="the same for every solver (%(default)s)")
    parser.add_argument("--batch", metavar="N", type=int, default=default.batch, help="samples at a time (%(default)s)")


DOCTOR_EXAMPLES = """examples:
  %(prog)s                                        the default run's network
  %(prog)s --run runs/digits-ve --samples 0       without drawing samples: seconds, but nothing is said of the solver's steps

Prints each cause with its numbers and what to do, keeps them in doctor.json, and exits with 1; with 0 where nothing wrong is found."""


def add_doctor_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `doctor`."""
    add_named_run_flags(parser)
    parser.add_argument("--samples", metavar="N", type=int, help="drawn to judge the solver's steps, 0 for none (default: by their cost)")


REPORT_EXAMPLES = """examples:
  %(prog)s runs/digits-vp                         runs/digits-vp/report.html, as the other commands leave it
  %(prog)s runs/digits-vp runs/digits-ve          both side by side in runs/report.html
  %(prog)s runs/* --out comparison.html           any number of them"""


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `report`."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directory")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the page (default: report.html in the run, or beside several runs)")
