"""How likely a user's own items are under the network of a run, and how unlike held-out data that makes them."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import parallel, progress
from ..conditions import Valid, ValidFeatures
from ..data import rows_drawn
from ..data.columns import Codec, Column
from ..data.columns.codec import VALID
from ..data.write import DataDescription
from ..likelihood.outliers import ItemScores, item_scores, p_values
from ..models.denoiser import counted
from ..models.score import ScoreModel
from ..report.files import write_text
from ..training import CheckpointError, load, read_extra
from ..training.checkpoint import WEIGHTS, checkpoint_of, open_checkpoint
from ..unknown_numbers import from_json, shown_number, to_json
from .config import ConfigError, RunConfig, read_config
from .estimate_flags import add_estimate_flags
from .given_conditions import Given, given_conditions
from .item_files import Items, check_out, read_items, write_beside
from .likelihood import LikelihoodSettings, check_settings
from .run_data import config_of_run, load_data
from .sample_job import description_of

PIECE = 1024
"""Items between two looks at the progress."""
LEVEL = 0.05
Say = Callable[[str], None]


@dataclass(frozen=True)
class ScoreSettings:
    """held_out: items that the p-values come from; cond: "NAME=VALUE", conditions of all items over those of the file; the rest as in
    `LikelihoodSettings`."""

    held_out: int = 300
    dequantization: str = "truncated_normal"
    draws: int = 1
    divergence: str | None = None
    probes: int = 2
    tolerance: float = 3e-4
    seed: int = 0
    batch: int = 256
    cond: tuple[str, ...] = ()

    @property
    def of_flow(self) -> dict[str, Any]:
        """What `item_scores` takes beside the items."""
        names = ("dequantization", "draws", "divergence", "probes", "seed")
        tolerance: dict[str, Any] = {"rtol": self.tolerance, "atol": self.tolerance, "batch_size": self.batch}
        return {name: getattr(self, name) for name in names} | tolerance


SCORE_EXAMPLES = """examples:
  %(prog)s new.csv --run runs/energy.csv-vp                 new.csv with columns log_prob, std_error, solver_error, p_low, p_two_sided
  %(prog)s new.npz --run runs/digits-vp --out scored.npz    the file's arrays with bits_per_dim and the rest beside them
  %(prog)s photos/ --run runs/faces-vp --held-out 1000      a table with a line an image; finer p-values
  torchrun --nproc-per-node 4 -- experiments/score.py many.npy --run RUN

p_low: the share of held-out data that is as unlikely (small: unlike the data). p_two_sided: small for what is far too likely as well."""


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `score`."""
    default = ScoreSettings()
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="your items: a table (.csv, .tsv, .parquet), .npy, .npz, an image or a folder of images"
    )
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="run directory")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help=".csv, .tsv, .npz, of parquet .parquet (default: score/ in the run, in the file's form)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file --out where it is there")
    parser.add_argument("--held-out", metavar="N", type=int, default=default.held_out, help="items that p-values come from (%(default)s)")
    what = "a condition of all items, as for sample, or of images a folder with a map of the same name for each (default: the file's own)"
    parser.add_argument("--cond", metavar="NAME=VALUE", action="append", default=[], help=what)
    add_estimate_flags(parser, default, "item")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU (default: OMP_NUM_THREADS, else free cores)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def score_run(
    directory: Path,
    file: Path,
    settings: ScoreSettings,
    out: Path | None,
    device: torch.device,
    overwrite: bool = False,
    show: bool = True,
    say: Say = print,
) -> dict[str, np.ndarray]:
    """Score the items of `file`, write the columns beside them to `out` (None: score/ in the run directory), and return the columns.

    log_prob (nats) or bits_per_dim, std_error and solver_error of each item; p_low and p_two_sided, its conformal p-values among
    `held_out` items that the network has not seen (`likelihood.outliers.p_values`), which are kept in the run directory. Items with
    gaps, and those that did not converge, have no values. Under torchrun all processes call this and share the items out; the first
    one writes. ConfigError, in one line, for a file, settings or conditions that do not fit the run.
    """
    _check(settings)
    try:
        checkpoint = checkpoint_of(directory)
        model, extra = load(checkpoint, device=device), read_extra(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"{directory} holds no trained network: {error}") from error
    try:
        about = description_of(directory, extra)
        asked, missing = _own_reading(directory)
        items = read_items(file, about, model.encoders, asked, missing)
        given = given_conditions(model.encoders, settings.cond, len(items.x), about.label_names, items.images)
        overwrite = overwrite or out is None
        out = _default_out(directory, file) if out is None else out
        check_out(out, overwrite, file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with (open_checkpoint(checkpoint) / WEIGHTS).open("rb") as weights:
        network = hashlib.file_digest(weights, "sha256").hexdigest()
    parallel.wait()
    known = _held_out(directory, extra, model, about, settings, network, say)
    found, likeness = _scores(model, items, about, settings, given, show)
    name = "log_prob" if found.unit == "nats" else "bits_per_dim"
    columns = {name: found.value, "std_error": found.std_error, "solver_error": found.solver_error}
    if known is not None:
        columns["p_low"], columns["p_two_sided"] = p_values(likeness, known[1])
    arrays = {key: value.numpy() for key, value in columns.items()}
    if parallel.rank() == 0:
        for line in _lines(items, found, None if known is None else known[0], columns, given, model):
            say(line)
        write_beside(out, items, arrays)
        say(f"scores    {out}: {', '.join(arrays)} beside the items of {file.name}")
    parallel.wait()
    return arrays


def _check(settings: ScoreSettings) -> None:
    if settings.held_out < 1:
        raise ConfigError(f"held_out must be a whole number of at least 1, got {settings.held_out!r}")
    names = ("dequantization", "draws", "divergence", "probes", "tolerance", "seed", "batch")
    check_settings(LikelihoodSettings(**{name: getattr(settings, name) for name in names}))


def _own_reading(directory: Path) -> tuple[tuple[str, ...], float | str | None]:
    """How the conditions of the run's data were asked for, and what marked a missing value."""
    file = directory / "config.yaml"
    if not file.is_file():
        return (), None
    section = read_config(file).get("data", {})
    data = RunConfig.model_validate({"data": section}).data
    return data.conditions, data.missing


def _default_out(directory: Path, file: Path) -> Path:
    ending = file.suffix.lower()
    table = {".csv": ".csv", ".tsv": ".tsv", ".txt": ".csv", ".parquet": ".parquet"}.get(ending)
    beside = table or (".npz" if ending in (".npy", ".npz") else ".csv")
    return directory / "score" / f"{file.stem or 'items'}{beside}"


def _scores(
    model: ScoreModel, items: Items, about: DataDescription, settings: ScoreSettings, given: dict[str, Given | None], show: bool
) -> tuple[ItemScores, Tensor]:
    """The scores of the items, NaN for those with gaps, and what p-values compare of them, larger for what is more likely."""
    x, count = items.x, len(items.x)
    cond = {name: encoder.missing(count, torch.device("cpu")) for name, encoder in model.encoders.items()} | items.cond
    for name, value in given.items():
        cond[name] = model.encoders[name].missing(count, torch.device("cpu")) if value is None else value.tensor(0, count)
    gaps = ~torch.isfinite(x)
    for name, encoder in model.encoders.items():
        if isinstance(encoder, Valid) and name not in items.cond and name not in given:  # as the training's items had it
            there = ~gaps.any(1, keepdim=True) if encoder.channels == 1 else ~gaps
            empty = ~there.flatten(1).any(1)  # an item of gaps alone has no value
            cond[name] = there | empty.reshape(-1, *[1] * (there.ndim - 1))
        elif isinstance(encoder, ValidFeatures) and name not in given:  # an item of nothing but gaps has no value in any case
            cond[name] = ~gaps | gaps.all(1, keepdim=True)
    valid = model.valid(model.conditions(cond, count, device_of(model)))
    whole = ~(gaps if valid is None else gaps & valid.cpu()).flatten(1).any(1)
    rows = whole.nonzero()[:, 0]
    if not len(rows):
        what = "a gap, or a value that the run's table cannot hold" if items.rows is not None else "a gap"
        raise ConfigError(f"{items.path.name}: every item has {what}; items without one are needed")
    if items.rows is not None:
        drawn = _draws([column.subset(rows.numpy()) for column in items.rows], about, settings, 0)
        x = torch.full((count, *drawn.shape[1:]), math.nan, dtype=torch.float64).index_put((rows,), drawn)
    parts = []
    with progress.bar(len(rows), "scoring", "item", show and parallel.rank() == 0) as bar:
        for first in range(0, len(rows), PIECE):
            chosen = rows[first : first + PIECE]
            beside = {name: value[chosen] for name, value in cond.items()}
            parts.append(_of_items(model, x[chosen], about, settings, beside, first))
            bar.update(len(chosen))
    likelihood, spread, steps, likeness = (
        torch.full((count,), math.nan, dtype=torch.float64).index_put((rows,), torch.cat(part)) for part in zip(*parts, strict=True)
    )
    if items.strange is not None:
        strange = torch.from_numpy(items.strange)
        likelihood, likeness = (value.masked_fill(strange, -math.inf) for value in (likelihood, likeness))
        spread, steps = (value.masked_fill(strange, 0) for value in (spread, steps))
    return ItemScores(likelihood, spread, steps, "nats" if about.levels is None else "bits/dim"), likeness


def _draws(rows: Sequence[Column], about: DataDescription, settings: ScoreSettings, stream: int) -> Tensor:
    """Features (N, draws, D) of rows of a table of kinds, each draw with a place of its own in every cell."""
    codec = Codec.from_config(about.codec)
    return torch.from_numpy(np.stack([codec.encode(rows, (settings.seed, stream, draw)) for draw in range(settings.draws)], 1))


def device_of(model: ScoreModel) -> torch.device:
    """Where the model's parameters lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _of_items(
    model: ScoreModel, x: Tensor, about: DataDescription, settings: ScoreSettings, cond: dict[str, Tensor], first: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, its two errors and the likeness of each item."""
    values = x.nan_to_num().long() if about.levels is not None else x.double()
    if about.codec is not None:
        of_rows = _of_draws(model, values, Codec.from_config(about.codec), settings, cond, first)
        return *of_rows, of_rows[0]
    try:
        found = item_scores(model, values, about.levels, cond, index_offset=first, **settings.of_flow)
        return found.value, found.std_error, found.solver_error, _likeness(model, values, cond, found)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _likeness(model: ScoreModel, x: Tensor, cond: dict[str, Tensor], found: ItemScores) -> Tensor:
    """What p-values compare. Of items with masks of their own the log-density of a valid entry in normalised units: the items' own would
    say first of all how many entries are valid, and in which units."""
    if found.unit != "nats" or not any(isinstance(encoder, Valid) for encoder in model.encoders.values()):
        return found.likeness
    device = device_of(model)
    valid = model.valid(model.conditions(cond, len(x), device))
    units, values = model.normalizer, x.to(device)
    assert valid is not None
    nats = found.value
    if units is not None:
        whole = torch.where(valid, values, units.decode(torch.zeros_like(values)))
        nats = nats - units.log_det(whole, valid).double().cpu()
    return nats / counted(valid, x.shape).cpu()


def _of_draws(
    model: ScoreModel, x: Tensor, codec: Codec, settings: ScoreSettings, cond: dict[str, Tensor], first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows of a table, as features x (N, draws, D): the mean of log p(features) - log q over the draws, which bounds log P(row)."""
    each = []
    for draw in range(settings.draws):
        offset = first * settings.draws + draw * len(x)
        try:
            found = item_scores(model, x[:, draw], None, cond, index_offset=offset, **settings.of_flow)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        each.append((found.value - torch.from_numpy(codec.log_q(x[:, draw].numpy())), found.std_error, found.solver_error))
    value, of_trace, steps = (torch.stack(part) for part in zip(*each, strict=True))
    spread = of_trace[0] if settings.draws == 1 else value.std(0) / math.sqrt(settings.draws)  # the trace's noise is part of it
    return value.mean(0), spread, steps.mean(0)


def _held_out(
    directory: Path, extra: dict[str, Any], model: ScoreModel, about: DataDescription, settings: ScoreSettings, network: str, say: Say
) -> tuple[ItemScores, Tensor] | None:
    """The scores of held-out data of the run and what p-values compare of them: those that are kept there, or else made and kept; None
    where there are no such data."""
    key = {**{name: value for name, value in asdict(settings).items() if name not in ("cond", "batch")}, "network": network}
    key |= {} if about.codec is None else {"of": "rows"}
    key |= {"of": "valid entries"} if any(isinstance(encoder, Valid) for encoder in model.encoders.values()) else {}
    name = hashlib.sha256(to_json(key).encode()).hexdigest()[:12]
    place = directory / "score" / f"held-out-{name}.json"
    unit = "nats" if about.levels is None else "bits/dim"
    try:
        kept = from_json(place.read_text(encoding="utf-8"))
        if kept["key"] == from_json(to_json(key)):
            likelihood, spread, steps, likeness = (
                torch.tensor([math.nan if v is None else v for v in kept[part]], dtype=torch.float64) for part in _PARTS
            )
            return ItemScores(likelihood, spread, steps, unit), likeness
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    parallel.wait()  # until all have looked
    try:
        data = load_data(config_of_run(directory))
    except ConfigError as error:
        say(f"warning   no p-values: the data of the run cannot be looked at ({error})")
        return None
    if extra.get("data") not in (None, data.signature()):
        say("warning   the run's data are no longer those that its network was trained on: held-out items may be among the training's")
    x, cond = data.held_out(list(model.encoders))
    if x is None:
        say("warning   no p-values: the run has no held-out items with all that its network is told")
        return None
    rows = rows_drawn(len(x), settings.held_out, settings.seed)
    of_rows = {name: value[rows] for name, value in cond.items()}
    chosen = x[rows]
    if data.codec is not None:
        try:
            there = of_rows[VALID].numpy() if VALID in of_rows else None
            chosen = _draws(data.codec.decode(chosen.numpy(), there), about, settings, 1)
        except ValueError as error:
            raise ConfigError(f"the run's data are no longer those that its network was trained on: {error}") from error
    of_items = _of_items(model, chosen, about, settings, of_rows, 0)
    if parallel.rank() == 0:
        place.parent.mkdir(parents=True, exist_ok=True)
        kept = {part: value.tolist() for part, value in zip(_PARTS, of_items, strict=True)}
        write_text(place, to_json({"key": key, **kept}, 1))
    likelihood, spread, steps, likeness = of_items
    return ItemScores(likelihood, spread, steps, unit), likeness


_PARTS = ("value", "std_error", "solver_error", "likeness")


def _lines(
    items: Items,
    found: ItemScores,
    known: ItemScores | None,
    columns: dict[str, Tensor],
    given: dict[str, Given | None],
    model: ScoreModel,
) -> list[str]:
    """What is said of the scores."""
    digits = ".3f" if found.unit == "bits/dim" else ".2f"

    def mean(scores: ItemScores) -> str:
        values = scores.value[torch.isfinite(scores.value)]
        if not len(values):
            return "no value"
        error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return f"{float(values.mean()):{digits}} +- {shown_number(error, digits)} {scores.unit} on average"

    scored = int((~torch.isnan(found.value)).sum())
    lost = len(items.x) - scored
    left = f"; {lost:,} of {len(items.x):,} have none (gaps, or not converged)" if lost else ""
    solver = float(found.solver_error.nanmean())
    lines = [f"scored    {scored:,} items of {items.path.name}: {mean(found)} (solver {solver:.1g}{left})"]
    if items.rows is not None:
        lines.append("bound     on log P of each row: a density where a column is a real number, a probability where it is not")
    if items.strange is not None and items.strange.any():
        shown = ", ".join(f"{column} {value!r}" for column, value in list(items.seen.items())[:4])
        lines.append(f"warning   {int(items.strange.sum()):,} rows hold what the run's table cannot ({shown}): their log P is -inf")
    if found.unit == "nats":
        blur = math.exp(-float(model.sde.half_log_snr(model.sde.t_min)))
        lines.append(f"density   of the data blurred by {blur:.2g} of their standard deviation, the noise at t_min")
    absent = [name for name in items.absent if given.get(name) is None]
    if absent:
        lines.append(f"condition {', '.join(absent)} not in the file: the likelihood is that of items of which nothing is known there")
    if known is not None:
        n = int((~torch.isnan(known.value)).sum())
        lines.append(f"held-out  {n:,} items of the run's data: {mean(known)}")
        for name, what in (("p_low", "less likely than"), ("p_two_sided", "unlike")):
            p = columns[name]
            few = int((p <= LEVEL).sum())
            most = f"; the least is {float(p[~torch.isnan(p)].min()):.3g}, of item {int(p.nan_to_num(2.0).argmin())}" if scored else ""
            lines.append(
                f"{name:<12}{few:,} of {scored:,} are {what} held-out data at p = {LEVEL:g} ({LEVEL * scored:.1f} expected of such){most}"
            )
        if 1 / (n + 1) > 0.01:
            lines.append(f"warning   {n} held-out items cannot tell p-values below {1 / (n + 1):.2g} (--held-out asks for more)")
    return lines
