"""The report's sections on what was made of a trained network: comparisons, likelihoods, restorations, and the commands for them."""

from __future__ import annotations

import math
import shlex

import torch

from ..report import charts
from ..report.embed import Embedder
from ..report.page import Block, Cell, Code, Picture, Table, Text
from ..unknown_numbers import number, to_json
from .compare import COLUMNS
from .report_cells import (
    QUALITIES,
    chart_block,
    count_cell,
    estimate_cell,
    number_cell,
    sentence_text,
)
from .restore import COLUMNS as RESTORE_COLUMNS
from .restore import TRUTHS, shown_coverage
from .saved_run import DISTANCES, OF_IMAGES, SavedRun


def comparison_blocks(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.comparison:
        return []
    rows, held_out, key = run.comparison["rows"], run.comparison["held_out"], run.comparison["distance"]
    label = (DISTANCES | OF_IMAGES)[key]
    blocks: list[Block] = [sentence_text(run.comparison["answer"].removeprefix("answer").strip())]
    beyond = None if held_out is None else held_out["distance"]
    if any(math.isfinite(number(row["distance"]["value"])) for row in rows if "distance" in row):
        solvers = ", ".join(dict.fromkeys(row["solver"] for row in rows))
        for cost, what in charts.COSTS.items():
            alt = f"{label} against {what}, a line for each of {solvers}; the table has the numbers"
            blocks += chart_block(embedder, charts.comparison(rows, cost, label, beyond), alt, f"{label} against {what}")
    picture = embedder.picture(run.directory / "compare" / "samples.png")
    if picture is not None:
        blocks.append(
            Picture(picture, "Samples of each solver from the same seeds, a row each", "The same seeds through every solver", wide=True)
        )
    columns = ["solver", "network calls", "seconds", label, *QUALITIES.values(), "failed"]
    lines = []
    for row in [*rows, *([] if held_out is None else [held_out])]:
        cells = [
            Cell(row["solver"]),
            count_cell(row["calls"] or None),
            number_cell(row["seconds"] or None, 1),
            estimate_cell(row.get("distance")),
        ]
        lines.append([*cells, *(estimate_cell(row.get(name)) for name in QUALITIES), count_cell(row["failed"] or None)])
    count = run.comparison["settings"]["samples"]
    blocks.append(Table(f"{count:,} samples of each solver at each number of calls", columns, lines, COLUMNS).filled())
    return blocks


def likelihood_blocks(run: SavedRun, embedder: Embedder) -> list[Block]:
    if not run.likelihood:
        return []
    unit, parts = run.likelihood["unit"], run.likelihood["parts"]
    values = {name: (number(part["value"]), number(part["std_error"])) for name, part in parts.items()}
    alt = f"{unit} of each part: " + "; ".join(f"{name} {estimate_cell(part, 3).text}" for name, part in parts.items())
    sense = "fewer bits are likelier" if unit == "bits/dim" else "more nats are likelier"
    blocks = chart_block(embedder, charts.values(values, unit), alt, f"With one standard error; {sense}")
    groups = {name: torch.tensor([number(value) for value in part["each"]]) for name, part in parts.items() if ", " not in name}
    if any(bool(each.isfinite().any()) for each in groups.values()):
        blocks += chart_block(embedder, charts.histogram(groups, unit), f"Histogram of {unit} over the items of each part", "Item by item")
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
        errors = [number_cell(part.get(key), 4) for key in ("test_set", "trace", "dequantisation", "solver")]
        rows.append([Cell(name), estimate_cell(part, 3), *errors, count_cell(part["images"])])
    notes = (
        "± is one standard error of everything known; the columns after it are its parts. A solver's estimate as large as the number "
        "says that the number is unknown."
    )
    blocks.append(Table("By part, with where the error comes from", columns, rows, notes).filled())
    if "classified" in run.likelihood:
        blocks.append(sentence_text(run.likelihood["classified"]["line"]))
    blocks.append(Text(f"The process ends {number(run.likelihood['prior_mismatch_nats']):.1g} nats from the data's own Gaussian."))
    return blocks


def restoration_blocks(run: SavedRun, embedder: Embedder) -> list[Block]:
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
            cells = [count_cell(row.get("network_calls")), number_cell(row.get("seconds"), 1), estimate_cell(row.get("error"), 3)]
            share = Cell(f"{shown_coverage(row['coverage'])[0]:.1%}", shown_coverage(row["coverage"])[0]) if "coverage" in row else Cell("")
            rows.append(
                [
                    Cell(method),
                    *cells,
                    share,
                    estimate_cell(row.get("log_evidence")),
                    number_cell(row.get("ess"), 1),
                    number_cell(row.get("lineages"), 1),
                ]
            )
            for kind, test in row.get("calibration", {}).items():
                if "reason" in test:
                    judged.append([Cell(method), Cell(TRUTHS[kind]), *[Cell("")] * (len(tests) - 3), Cell(test["reason"])])
                    continue
                shares = [*test["coverage"]["entries"]["value"], shown_coverage(test["coverage"]["regions"])[0]]
                values = [number_cell(test[name], 3) for name in ("sbc_p", "region_p", "tarp_p")]
                verdict = Cell("calibrated" if test["calibrated"] else "not calibrated")
                shown = [Cell(f"{share:.1%}", share) for share in shares]
                judged.append([Cell(method), Cell(TRUTHS[kind]), *shown, *values, estimate_cell(test["energy"]), verdict])
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


def again_blocks(run: SavedRun, embedder: Embedder) -> list[Block]:
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
