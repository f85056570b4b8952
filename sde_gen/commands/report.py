"""report.html: what lies in run directories, on one page.

    run directory: config.yaml, metrics.json, history.json, likelihood/, compare/, doctor.json, pictures
        -> SavedRun (what could be read) -> sections of blocks -> report.page.render -> one file

Nothing is computed here that a command did not measure and keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import charts
from ..report.embed import Embedder
from ..report.files import write_text
from ..report.page import Block, Cell, Chapter, Facts, Film, Page, Picture, Section, Table, Text, Warnings, render
from ..unknown_numbers import shown_number
from .by_condition import PICTURE, information_lines
from .compare import QUALITIES_ARE
from .config import ConfigError
from .image_scores import CALLED, lines_of
from .of_columns import PICTURE as MARGINS
from .of_columns import column_table
from .of_fields import PICTURE as FIELDS
from .report_cells import (
    QUALITIES,
    chart_block,
    count_cell,
    ends_line,
    environment_facts,
    estimate_cell,
    number_cell,
    sentence_text,
    settings_line,
)
from .report_results import again_blocks, comparison_blocks, likelihood_blocks, restoration_blocks
from .saved_run import CHANCE, DISTANCES, OF_IMAGES, SavedRun, read_run, warnings

MOST_BYTES = 5_000_000
FOR_TEXT = 80_000
"""Of them, kept for each run's tables, texts and settings; the rest is shared out evenly for its pictures."""
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
        ("Solvers compared", comparison_blocks),
        ("Likelihood", likelihood_blocks),
        ("Restored data", restoration_blocks),
        ("How to run it again", again_blocks),
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
        ("Process", settings_line(config.sde.name, config.sde.settings)),
        ("Network", settings_line(config.model.network, config.model.options)),
        ("Predicts", config.model.prediction),
    ]
    if training:
        pairs.append(("Trained", f"{training['steps']:,} steps of {config.training.batch} in {training['seconds']:,.0f} s"))
    pairs += [(name, text) for name, text in environment_facts(training.get("environment", {}))]
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
            distances, qualities = ([estimate_cell(scores.get(key)) for key in keys] for keys in (DISTANCES, QUALITIES))
            which = [
                Cell(run.name),
                Cell(run.config.data.name),
                Cell(run.config.sde.name),
                Cell(name),
                count_cell(scores.get("network_calls")),
            ]
            size = count_cell(scores.get("distance_size"))
            of_images = _of_images(scores.get("image_scores", {}))
            rows.append(
                [*which, *distances, size, *likelihood, *qualities, count_cell(scores.get("samples")), number_cell(rate, 3), *of_images]
            )
    notes = f"Distances depend on the number of items, {SIZE!r}: compare those of one number. {QUALITIES_ARE}"
    if len(runs) == 1:
        return Table("Every solver that sampled this network", columns[3:], [row[3:] for row in rows], notes).filled()
    return Table("Every solver of every run", columns, rows, notes).filled()


def _of_images(scores: Mapping[str, Any]) -> list[Cell]:
    """The cells of `IMAGE_COLUMNS`."""
    distances = [estimate_cell(scores.get("distance")) if scores.get("called") == name else Cell("") for name in CALLED]
    free = scores.get("unbiased")
    unbiased = Cell("") if free is None or "reason" in free else estimate_cell(free)
    kernel = estimate_cell(scores.get("kernel"), 5) if scores.get("called") == "FID" else Cell("")
    return [*distances, unbiased, kernel, estimate_cell(scores.get("score", {}).get("value")), count_cell(scores.get("size"))]


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
    cell = estimate_cell(run.likelihood["parts"]["held-out"], 3)
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
            else f"; {DISTANCES[which]} {estimate_cell(scores[which]).text} over {scores.get('distance_size', scores['samples']):,} items"
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
            blocks += [sentence_text(f"{name}: {line}") for line in lines_of(scores["image_scores"])]
        frames = embedder.film(place / "denoising.gif")
        if frames:
            blocks.append(Film(frames, f"Denoising with {name}", f"{name}, from noise to data: every state is shown at unit variance"))
    return blocks


def _conditions(run: SavedRun, embedder: Embedder) -> list[Block]:
    known = run.metrics.get("information", {})
    blocks: list[Block] = [sentence_text(line) for line in information_lines(known)]
    picture = embedder.picture(run.directory / PICTURE)
    if picture is not None:
        alt = "Samples of each condition, a row each, at growing strengths of guidance, a column each, from the same noise"
        caption = "The same noise at each strength of guidance: 1 is the conditional model; beyond it samples follow no known law"
        blocks.append(Picture(picture, alt, caption, wide=True))
    curves = {name: one for name, one in known.items() if "levels" in one}
    if curves:
        alt = "Nats that each condition tells for each unit of half log-SNR: " + "; ".join(
            f"{name} {ends_line(dict(zip(one['levels'], one['by_level'], strict=True)))}" for name, one in curves.items()
        )
        blocks += chart_block(embedder, charts.information_by_level(curves), alt, "What conditions tell by noise level: areas are nats")
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
        cells = [estimate_cell(one[key], digits) for key, digits in (("distance", 2), ("held_out", 2), ("confirmed", 3))]
        rows.append([Cell(one["name"]), count_cell(one["samples"]), *cells])
    total = sum(one["samples"] for one in found["classes"])
    rows.append([Cell("all"), count_cell(total), Cell(""), Cell(""), estimate_cell(found["confirmed"], 3)])
    size = "" if found["size"] is None else f"Distances are of {found['size']:,} items of a class to its training items. "
    few = [one["reason"] for one in found["classes"] if "reason" in one]
    notes = f"{size}Confirmed: the share of the samples that the features' classifier takes for the class that they were drawn for."
    return Table(f"{solver}: class by class", columns, rows, " ".join([notes, *(f"Not measured: {why}." for why in few[:3])])).filled()


def _training(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.history:
        return []
    history, linear = run.history["history"], run.history["linear"]
    blocks: list[Block] = [sentence_text(line[10:]) for line in run.loss_summary()[:1]]
    measured = [entry for entry in history if entry.get("level_loss")]
    if measured:
        last = dict(zip(measured[-1]["levels"], measured[-1]["level_loss"], strict=True))
        beside = ends_line(dict(zip(linear["levels"], linear["linear"], strict=True)))
        alt = f"Held-out loss over a zero network's by noise level: {ends_line(last)}; the best linear denoiser: {beside}"
        caption = "By noise level, beside its baselines: below green is real learning"
        blocks += chart_block(embedder, charts.loss_by_level(history, linear), alt, caption)
    steps = f"Training loss over {history[-1]['step']:,} steps, {shown_number(history[-1]['loss'], '.3g')} at the end"
    blocks += chart_block(embedder, charts.loss_over_steps(history), steps, "Over training")
    forward = embedder.picture(run.directory / "forward.png")
    if forward is not None:
        blocks.append(Text("What the network is shown: data at growing noise."))
        blocks.append(Picture(forward, "Data along the forward process, from no noise to nothing but noise", wide=True))
    return blocks


def _memory(run: SavedRun, embedder: Embedder) -> list[Block]:
    blocks: list[Block] = [sentence_text(line[10:]) for line in run.loss_summary()[1:]]
    for name, scores in run.solvers.items():
        if "memorised_fraction" in scores:
            copied, ratio = estimate_cell(scores["memorised_fraction"], 3).text, estimate_cell(scores["neighbour_ratio"], 3).text
            line = f"{name}: {copied} of the samples are nearer to a training item than 95 % of held-out ones are (chance: {CHANCE}); "
            blocks.append(Text(f"{line}their nearest-neighbour ratio is {ratio} (1: like new data, 0: copies)."))
    items = run.history.get("items", {})
    if "training" in items and "held_out" in items:
        levels = run.history["linear"]["levels"]
        curves = {"training data": "training", "held-out data": "held_out"}
        parts = {label: (items[key], items[f"{key}_error"]) for label, key in curves.items()}
        best = run.history["linear"].get("best")
        alt = "The error over a zero network's on training and on held-out data by noise level: " + "; ".join(
            f"{label} {ends_line(dict(zip(levels, items[key], strict=True)))}" for label, key in curves.items()
        )
        caption = "A network that memorises leaves the held-out curve and falls to the dotted one"
        blocks += chart_block(embedder, charts.memory_by_level(levels, parts, best), alt, caption)
    return blocks


# ---------------------------------------------------------------- values as text
