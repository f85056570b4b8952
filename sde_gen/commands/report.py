"""report.html: what lies in run directories, on one page.

    run directory: config.yaml, metrics.json, history.json, likelihood/, compare/, doctor.json, pictures
        -> SavedRun (what could be read) -> sections of blocks -> report.page.render -> one file

Nothing is computed here that a command did not measure and keep.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..report import charts
from ..report.embed import Embedder
from ..report.files import write_text
from ..report.page import Block, Cell, Chapter, Code, Facts, Film, Page, Picture, Section, Table, Text, Warnings, render
from ..unknown_numbers import number, shown_estimate, shown_number, to_json
from .by_condition import PICTURE, information_lines
from .compare import COLUMNS, QUALITIES_ARE
from .config import ConfigError
from .image_scores import CALLED, lines_of
from .of_columns import PICTURE as MARGINS
from .of_columns import column_table
from .of_fields import PICTURE as FIELDS
from .restore import COLUMNS as RESTORE_COLUMNS
from .restore import TRUTHS, shown_coverage
from .saved_run import CHANCE, DISTANCES, OF_IMAGES, SavedRun, read_run, warnings

MOST_BYTES = 5_000_000
FOR_TEXT = 80_000
"""Of them, kept for each run's tables, texts and settings; the rest is shared out evenly for its pictures."""
QUALITIES = {"precision": "precision", "recall": "recall", "memorised_fraction": "memorised", "neighbour_ratio": "neighbour ratio"}
SIZE = "at N items"
IMAGE_COLUMNS = (*OF_IMAGES.values(), "without bias", "KID", "Inception Score", "at N images")
UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError)
"""What reading a file that no command wrote so can raise."""


def write_report(directories: Sequence[Path], out: Path | None = None) -> Path:
    """report.html of one run in its directory, or of several runs side by side in the directory that holds the first; or at `out`.

    The file is below `MOST_BYTES`: pictures that would not fit are named instead. ConfigError for a directory that is no run.
    """
    if not directories:
        raise ConfigError("a report needs at least one run directory")
    runs = [read_run(directory) for directory in directories]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.directory)
    if out is None:
        out = (directories[0] if len(runs) == 1 else directories[0].absolute().parent) / "report.html"
    if not out.parent.is_dir():
        raise ConfigError(f"cannot write {out}: there is no directory {out.parent}")
    room = max(0, MOST_BYTES // len(runs) - FOR_TEXT)
    chapters = [Chapter(run.name, _sections(run, Embedder(room, len(run.solvers)))) for run in runs]
    if len(runs) == 1:
        page = Page(runs[0].name, [], chapters)
    else:
        warned = [f"{run.name}: {line}" for run in runs for line in warnings(run)]
        page = Page(f"{len(runs)} runs", [Warnings(warned), _summary([run for run in runs if _summarised(run)])], chapters)
    write_text(out, render(page))
    return out


def _sections(run: SavedRun, embedder: Embedder) -> list[Section]:
    parts: Sequence[tuple[str, Callable[[SavedRun, Embedder], list[Block]]]] = (
        ("At a glance", _glance),
        ("Samples", _samples),
        ("Conditions", _conditions),
        ("What the network learnt", _training),
        ("Does it memorise?", _memory),
        ("Solvers compared", _comparison),
        ("Likelihood", _likelihood),
        ("Restored data", _restorations),
        ("How to run it again", _again),
    )
    sections = []
    for title, build in parts:
        try:
            blocks = build(run, embedder)
        except UNREADABLE as error:
            blocks = [Warnings([f"this part cannot be shown: what the run directory holds is not what the commands write ({error!r})"])]
        left = embedder.left_out()
        if left:
            blocks = [*blocks, Text(f"Left out, to keep this file below {MOST_BYTES / 1e6:g} MB: {', '.join(left)}.")]
        if blocks:
            sections.append(Section(title, blocks))
    return sections


# ---------------------------------------------------------------- the parts


def _glance(run: SavedRun, embedder: Embedder) -> list[Block]:
    training, config = run.metrics.get("training", {}), run.config
    pairs = [
        ("Data", config.data.name),
        ("Process", _settings(config.sde.name, config.sde.settings)),
        ("Network", _settings(config.model.network, config.model.options)),
        ("Predicts", config.model.prediction),
    ]
    if training:
        pairs.append(("Trained", f"{training['steps']:,} steps of {config.training.batch} in {training['seconds']:,.0f} s"))
    pairs += [(name, text) for name, text in _environment(training.get("environment", {}))]
    blocks: list[Block] = [Warnings(warnings(run)), Facts(pairs)]
    if run.solvers:
        blocks.append(_summary([run]))
    return blocks


def _summary(runs: Sequence[SavedRun]) -> Table:
    """A row for each solver of each run."""
    names = [*DISTANCES.values(), "held-out bits/dim", "held-out nats/dim", *QUALITIES.values()]
    columns = ["run", "data", "SDE", "solver", "network calls", *names, "samples", "s a sample"]
    columns.insert(columns.index(names[0]) + len(DISTANCES), SIZE)
    columns += IMAGE_COLUMNS
    rows = []
    for run in runs:
        likelihood = _held_out_likelihood(run)
        for name, scores in run.solvers.items() or {"–": {}}.items():
            rate = scores["seconds"] / scores["samples"] if scores.get("samples") else None
            distances, qualities = ([_estimate(scores.get(key)) for key in keys] for keys in (DISTANCES, QUALITIES))
            which = [Cell(run.name), Cell(run.config.data.name), Cell(run.config.sde.name), Cell(name), _count(scores.get("network_calls"))]
            size = _count(scores.get("distance_size"))
            of_images = _of_images(scores.get("image_scores", {}))
            rows.append([*which, *distances, size, *likelihood, *qualities, _count(scores.get("samples")), _number(rate, 3), *of_images])
    notes = f"Distances depend on the number of items, {SIZE!r}: compare those of one number. {QUALITIES_ARE}"
    if len(runs) == 1:
        return Table("Every solver that sampled this network", columns[3:], [row[3:] for row in rows], notes).filled()
    return Table("Every solver of every run", columns, rows, notes).filled()


def _of_images(scores: Mapping[str, Any]) -> list[Cell]:
    """The cells of `IMAGE_COLUMNS`."""
    distances = [_estimate(scores.get("distance")) if scores.get("called") == name else Cell("") for name in CALLED]
    free = scores.get("unbiased")
    unbiased = Cell("") if free is None or "reason" in free else _estimate(free)
    kernel = _estimate(scores.get("kernel"), 5) if scores.get("called") == "FID" else Cell("")
    return [*distances, unbiased, kernel, _estimate(scores.get("score", {}).get("value")), _count(scores.get("size"))]


def _summarised(run: SavedRun) -> bool:
    """Whether the run's files can be read as a row; where not, its warnings and its chapter say so."""
    try:
        return bool(_summary([run]).columns)
    except UNREADABLE:
        return False


def _held_out_likelihood(run: SavedRun) -> list[Cell]:
    """In bits and in nats: one of them is empty."""
    if "held-out" not in run.likelihood.get("parts", {}):
        return [Cell(""), Cell("")]
    cell = _estimate(run.likelihood["parts"]["held-out"], 3)
    return [cell, Cell("")] if run.likelihood["unit"] == "bits/dim" else [Cell(""), cell]


def _samples(run: SavedRun, embedder: Embedder) -> list[Block]:
    blocks: list[Block] = []
    for name, scores in run.solvers.items():
        place = run.directory / "solvers" / name
        calls = f"{scores['network_calls']:,.0f} network calls a sample"
        which = next((key for key in DISTANCES if key in scores), None)
        distance = (
            ""
            if which is None
            else f"; {DISTANCES[which]} {_estimate(scores[which]).text} over {scores.get('distance_size', scores['samples']):,} items"
        )
        picture = embedder.picture(place / "samples.png")
        if picture is not None:
            blocks.append(Picture(picture, f"Samples drawn with {name}", f"{name}: {calls}{distance}"))
        margins = embedder.picture(place / MARGINS) if "table" in scores else None
        if margins is not None:
            beside = f"{name} beside {scores['table'].get('truth', 'held-out rows')}"
            blocks.append(Picture(margins, f"Margins of the columns, {beside}", "Margins of the columns", wide=True))
        fields = embedder.picture(place / FIELDS) if (place / FIELDS).exists() else None
        if fields is not None:
            caption = f"{name} beside held-out items: values and spectra of each channel; what is no data is grey"
            blocks.append(Picture(fields, f"Fields drawn with {name} beside held-out ones, channel by channel", caption, wide=True))
        if "table" in scores:
            blocks += column_table(name, scores["table"])
        if "image_scores" in scores:
            blocks += [_sentence(f"{name}: {line}") for line in lines_of(scores["image_scores"])]
        frames = embedder.film(place / "denoising.gif")
        if frames:
            blocks.append(Film(frames, f"Denoising with {name}", f"{name}, from noise to data: every state is shown at unit variance"))
    return blocks


def _conditions(run: SavedRun, embedder: Embedder) -> list[Block]:
    known = run.metrics.get("information", {})
    blocks: list[Block] = [_sentence(line) for line in information_lines(known)]
    picture = embedder.picture(run.directory / PICTURE)
    if picture is not None:
        alt = "Samples of each condition, a row each, at growing strengths of guidance, a column each, from the same noise"
        caption = "The same noise at each strength of guidance: 1 is the conditional model; beyond it samples follow no known law"
        blocks.append(Picture(picture, alt, caption, wide=True))
    curves = {name: one for name, one in known.items() if "levels" in one}
    if curves:
        alt = "Nats that each condition tells for each unit of half log-SNR: " + "; ".join(
            f"{name} {_ends(dict(zip(one['levels'], one['by_level'], strict=True)))}" for name, one in curves.items()
        )
        blocks += _chart(embedder, charts.information_by_level(curves), alt, "What conditions tell by noise level: areas are nats")
    for name, scores in run.solvers.items():
        if "by_class" in scores:
            blocks.append(_by_class(name, scores["by_class"]))
    return blocks


def _by_class(solver: str, found: Mapping[str, Any]) -> Table:
    """A row for each class of a solver's samples, and one for all."""
    distance = DISTANCES[found["distance"]]
    columns = ["class", "samples", distance, "of held-out data", "confirmed"]
    rows = []
    for one in found["classes"]:
        cells = [_estimate(one[key], digits) for key, digits in (("distance", 2), ("held_out", 2), ("confirmed", 3))]
        rows.append([Cell(one["name"]), _count(one["samples"]), *cells])
    total = sum(one["samples"] for one in found["classes"])
    rows.append([Cell("all"), _count(total), Cell(""), Cell(""), _estimate(found["confirmed"], 3)])
    size = "" if found["size"] is None else f"Distances are of {found['size']:,} items of a class to its training items. "
    few = [one["reason"] for one in found["classes"] if "reason" in one]
    notes = f"{size}Confirmed: the share of the samples that the features' classifier takes for the class that they were drawn for."
    return Table(f"{solver}: class by class", columns, rows, " ".join([notes, *(f"Not measured: {why}." for why in few[:3])])).filled()


def _chart(embedder: Embedder, uri: str, alt: str, caption: str) -> list[Block]:
    fits = embedder.fitting(uri, f"the chart {caption!r}")
    return [] if fits is None else [Picture(fits, alt, caption, "none")]


def _training(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.history:
        return []
    history, linear = run.history["history"], run.history["linear"]
    blocks: list[Block] = [_sentence(line[10:]) for line in run.loss_summary()[:1]]
    measured = [entry for entry in history if entry.get("level_loss")]
    if measured:
        last = dict(zip(measured[-1]["levels"], measured[-1]["level_loss"], strict=True))
        beside = _ends(dict(zip(linear["levels"], linear["linear"], strict=True)))
        alt = f"Held-out loss over a zero network's by noise level: {_ends(last)}; the best linear denoiser: {beside}"
        caption = "By noise level, beside its baselines: below green is real learning"
        blocks += _chart(embedder, charts.loss_by_level(history, linear), alt, caption)
    steps = f"Training loss over {history[-1]['step']:,} steps, {shown_number(history[-1]['loss'], '.3g')} at the end"
    blocks += _chart(embedder, charts.loss_over_steps(history), steps, "Over training")
    forward = embedder.picture(run.directory / "forward.png")
    if forward is not None:
        blocks.append(Text("What the network is shown: data at growing noise."))
        blocks.append(Picture(forward, "Data along the forward process, from no noise to nothing but noise", wide=True))
    return blocks


def _memory(run: SavedRun, embedder: Embedder) -> list[Block]:
    blocks: list[Block] = [_sentence(line[10:]) for line in run.loss_summary()[1:]]
    for name, scores in run.solvers.items():
        if "memorised_fraction" in scores:
            copied, ratio = _estimate(scores["memorised_fraction"], 3).text, _estimate(scores["neighbour_ratio"], 3).text
            line = f"{name}: {copied} of the samples are nearer to a training item than 95 % of held-out ones are (chance: {CHANCE}); "
            blocks.append(Text(f"{line}their nearest-neighbour ratio is {ratio} (1: like new data, 0: copies)."))
    items = run.history.get("items", {})
    if "training" in items and "held_out" in items:
        levels = run.history["linear"]["levels"]
        curves = {"training data": "training", "held-out data": "held_out"}
        parts = {label: (items[key], items[f"{key}_error"]) for label, key in curves.items()}
        best = run.history["linear"].get("best")
        alt = "The error over a zero network's on training and on held-out data by noise level: " + "; ".join(
            f"{label} {_ends(dict(zip(levels, items[key], strict=True)))}" for label, key in curves.items()
        )
        caption = "A network that memorises leaves the held-out curve and falls to the dotted one"
        blocks += _chart(embedder, charts.memory_by_level(levels, parts, best), alt, caption)
    return blocks


def _comparison(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.comparison:
        return []
    rows, held_out, key = run.comparison["rows"], run.comparison["held_out"], run.comparison["distance"]
    label = (DISTANCES | OF_IMAGES)[key]
    blocks: list[Block] = [_sentence(run.comparison["answer"].removeprefix("answer").strip())]
    beyond = None if held_out is None else held_out["distance"]
    if any(math.isfinite(number(row["distance"]["value"])) for row in rows if "distance" in row):
        solvers = ", ".join(dict.fromkeys(row["solver"] for row in rows))
        for cost, what in charts.COSTS.items():
            alt = f"{label} against {what}, a line for each of {solvers}; the table has the numbers"
            blocks += _chart(embedder, charts.comparison(rows, cost, label, beyond), alt, f"{label} against {what}")
    picture = embedder.picture(run.directory / "compare" / "samples.png")
    if picture is not None:
        blocks.append(
            Picture(picture, "Samples of each solver from the same seeds, a row each", "The same seeds through every solver", wide=True)
        )
    columns = ["solver", "network calls", "seconds", label, *QUALITIES.values(), "failed"]
    lines = []
    for row in [*rows, *([] if held_out is None else [held_out])]:
        cells = [Cell(row["solver"]), _count(row["calls"] or None), _number(row["seconds"] or None, 1), _estimate(row.get("distance"))]
        lines.append([*cells, *(_estimate(row.get(name)) for name in QUALITIES), _count(row["failed"] or None)])
    count = run.comparison["settings"]["samples"]
    blocks.append(Table(f"{count:,} samples of each solver at each number of calls", columns, lines, COLUMNS).filled())
    return blocks


def _likelihood(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.likelihood:
        return []
    unit, parts = run.likelihood["unit"], run.likelihood["parts"]
    values = {name: (number(part["value"]), number(part["std_error"])) for name, part in parts.items()}
    alt = f"{unit} of each part: " + "; ".join(f"{name} {_estimate(part, 3).text}" for name, part in parts.items())
    sense = "fewer bits are likelier" if unit == "bits/dim" else "more nats are likelier"
    blocks = _chart(embedder, charts.values(values, unit), alt, f"With one standard error; {sense}")
    groups = {name: torch.tensor([number(value) for value in part["each"]]) for name, part in parts.items() if ", " not in name}
    if any(bool(each.isfinite().any()) for each in groups.values()):
        blocks += _chart(embedder, charts.histogram(groups, unit), f"Histogram of {unit} over the items of each part", "Item by item")
    for file, alt, caption in (
        (
            "extremes.png",
            "The most likely held-out images above, the least likely below, with their values",
            "Both ends of the held-out data",
        ),
        ("terms.png", "The bound's terms over time, and for each unit of half log-SNR", "Where the chain spends its bits"),
    ):
        picture = embedder.picture(run.directory / "likelihood" / file)
        if picture is not None:
            blocks.append(Picture(picture, alt, caption, wide=file == "terms.png"))
    columns = ["data", unit, "from the test set", "from the trace", "from dequantisation", "solver's estimate", "items"]
    rows = []
    for name, part in parts.items():
        errors = [_number(part.get(key), 4) for key in ("test_set", "trace", "dequantisation", "solver")]
        rows.append([Cell(name), _estimate(part, 3), *errors, _count(part["images"])])
    notes = (
        "± is one standard error of everything known; the columns after it are its parts. A solver's estimate as large as the number "
        "says that the number is unknown."
    )
    blocks.append(Table("By part, with where the error comes from", columns, rows, notes).filled())
    if "classified" in run.likelihood:
        blocks.append(_sentence(run.likelihood["classified"]["line"]))
    blocks.append(Text(f"The process ends {number(run.likelihood['prior_mismatch_nats']):.1g} nats from the data's own Gaussian."))
    return blocks


def _restorations(run: SavedRun, embedder: Embedder) -> list[Block]:
    blocks: list[Block] = []
    columns = ["method", "network calls", "seconds", "error of the mean", "90 % coverage", "log evidence", "effective samples", "lineages"]
    tests = ["method", "truths", "50 %", "80 %", "90 %", "95 %", "regions, 90 %", "ranks, p", "regions, p", "TARP, p", "energy score", ""]
    for part in run.restorations:
        blocks.append(Text(f"{part['operator']}, noise {part['noise']}: {part['items']} {part['source']}."))
        rows, judged = [], []
        for method, row in part["methods"].items():
            picture = embedder.picture(part["place"] / f"{method}.png")
            if picture is not None:
                alt = f"Items restored by {method} from {part['operator']}: what was measured, the posterior's mean, spread and samples"
                blocks.append(Picture(picture, alt, f"{method}: mean, standard deviation and samples of each posterior", wide=True))
            cells = [_count(row.get("network_calls")), _number(row.get("seconds"), 1), _estimate(row.get("error"), 3)]
            share = Cell(f"{shown_coverage(row['coverage'])[0]:.1%}", shown_coverage(row["coverage"])[0]) if "coverage" in row else Cell("")
            rows.append(
                [
                    Cell(method),
                    *cells,
                    share,
                    _estimate(row.get("log_evidence")),
                    _number(row.get("ess"), 1),
                    _number(row.get("lineages"), 1),
                ]
            )
            for kind, test in row.get("calibration", {}).items():
                if "reason" in test:
                    judged.append([Cell(method), Cell(TRUTHS[kind]), *[Cell("")] * (len(tests) - 3), Cell(test["reason"])])
                    continue
                shares = [*test["coverage"]["entries"]["value"], shown_coverage(test["coverage"]["regions"])[0]]
                values = [_number(test[name], 3) for name in ("sbc_p", "region_p", "tarp_p")]
                verdict = Cell("calibrated" if test["calibrated"] else "not calibrated")
                shown = [Cell(f"{share:.1%}", share) for share in shares]
                judged.append([Cell(method), Cell(TRUTHS[kind]), *shown, *values, _estimate(test["energy"]), verdict])
        blocks.append(Table(f"Restored from {part['operator']}, by method", columns, rows, RESTORE_COLUMNS).filled())
        picture = embedder.picture(part["place"] / "calibration.png")
        if judged:
            blocks.append(Table("Are they calibrated?", tests, judged, CALIBRATED).filled())
        if picture is not None:
            alt = "Coverage against the share that should be, and ranks of the truths against uniform ones; the table has the numbers"
            blocks.append(Picture(picture, alt, "Coverage and ranks, with the bands of right posteriors", wide=True))
    return blocks


CALIBRATED = (
    "The share of entries inside the central 50 to 95 % of their posteriors, and of truths inside regions of highest density; p-values "
    "that the truths' ranks among samples are uniform. Truths from the model judge the sampler alone, held-out data the network too."
)


def _again(run: SavedRun, embedder: Embedder) -> list[Block]:
    place = shlex.quote(str(run.directory))
    lines = []
    for name, scores in run.solvers.items():
        chosen = scores.get("settings", {})
        keys = {"steps": "--steps", "grid": "--grid", "samples": "--samples", "seed": "--sample-seed"}
        own = run.config.sampling
        others = ["reference"] if own.reference is not None else []
        keys |= {key: f"--{key}" for key in ("features", "reference") if chosen.get(key) != getattr(own, key)}
        flags = [f"{flag} {shlex.quote(str(chosen[key]))}" for key, flag in keys.items() if chosen.get(key) is not None]
        # The solver's own are said too: config.yaml has those of the last run.
        flags += [f"--set sampling.{key}=null" for key in ("steps", "grid", *others) if key in chosen and chosen[key] is None]
        flags += [f"--set {shlex.quote(f'sampling.options.{key}={to_json(value)}')}" for key, value in chosen.get("options", {}).items()]
        again = f"python experiments/run.py --config {shlex.quote(str(run.directory / 'config.yaml'))} --out {place}"
        lines.append(" ".join([again, f"--solver {shlex.quote(name)}", *flags]))
    if run.comparison:
        chosen = run.comparison["settings"]
        flags = [f"--{key} {shlex.quote(str(chosen[key]))}" for key in ("samples", "seed", "batch")]
        flags += [f"--{key} {shlex.quote(str(chosen[key]))}" for key in ("features", "reference") if chosen.get(key) is not None]
        if chosen["calls"] is not None:
            flags.append("--calls " + ",".join(map(str, chosen["calls"])))
        lines.append(f"python experiments/compare.py --run {place} --solvers {shlex.quote(','.join(chosen['solvers']))} {' '.join(flags)}")
    if run.likelihood:
        chosen = {key: value for key, value in run.likelihood["settings"].items() if value is not None}
        flags = [f"--{key} {shlex.quote(str(value))}" for key, value in chosen.items()]
        lines.append(f"python experiments/likelihood.py --run {place} {' '.join(flags)}")
    for part in run.restorations:
        chosen = {key: value for key, value in part["settings"].items() if value is not None and key != "methods"}
        flags = [f"--{key} {shlex.quote(str(value))}" for key, value in chosen.items()]
        flags += [f"--method {shlex.quote(method)}" for method in part["settings"]["methods"]]
        lines.append(f"python experiments/restore.py --run {place} {' '.join(flags)}")
    ends = run.metrics.get("training", {}).get("earlier_ends", [])
    first = "".join(f", first with --train-steps {end}" for end in ends)
    blocks: list[Block] = [
        Code("\n".join(lines), f"The same numbers again, from the trained network (with --retrain from nothing{first}):")
    ]
    if not lines:
        blocks = []
    return [*blocks, Code(run.config.to_yaml(), "config.yaml", folded=True)]


# ---------------------------------------------------------------- values as text


def _sentence(line: str) -> Text:
    """A line of the terminal as a sentence."""
    line = line.replace("+-", "±").replace("`", "")
    return Text(line[:1].upper() + line[1:] + ".")


def _number(value: Any, digits: int) -> Cell:
    known = number(value)
    if math.isnan(known):
        return Cell("")
    smallest = 0.5 * 10**-digits
    return Cell(f"< {10**-digits:.{digits}f}" if 0 < known < smallest else f"{known:.{digits}f}", known)


def _count(value: Any) -> Cell:
    known = number(value)
    return Cell("") if math.isnan(known) else Cell(f"{known:,.0f}", known)


def _estimate(value: Mapping[str, Any] | None, digits: int = 2) -> Cell:
    if value is None:
        return Cell("")
    return Cell(shown_estimate(value, digits).replace("+-", "±"), number(value["value"]))


def _settings(name: str, settings: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{name} ({shown})" if shown else name


def _environment(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not found:
        return []
    return [("On", f"{found['device']}, {found['threads']} threads"), ("With", f"sde_gen {found['sde_gen']}, torch {found['torch']}")]


def _ends(curve: Mapping[float, float]) -> str:
    """A curve over the half log-SNR in words."""
    order = sorted(curve)
    middle = order[len(order) // 2]
    points = ((order[0], "in nothing but noise"), (middle, "in the middle"), (order[-1], "in nearly clean data"))
    return ", ".join(f"{shown_number(curve[at], '.2f')} {where}" for at, where in points)
