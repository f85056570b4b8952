"""What is not known is NaN in calculations, null in JSON and "unknown" in print; old files, which hold NaN, are read like new ones."""

import ast
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import TINY_RUN, Command

import sde_gen
from sde_gen.commands import compare
from sde_gen.commands.report import write_report
from sde_gen.commands.saved_run import read_run, warnings
from sde_gen.diagnostics.finding import Finding
from sde_gen.sampling.fitted import FittedGrid
from sde_gen.training import read_state
from sde_gen.training.trainer import Trainer
from sde_gen.training.validation import Validation
from sde_gen.unknown_numbers import from_json, number, shown_estimate, shown_number, to_json, with_nan

PACKAGE = Path(sde_gen.__file__).parent
NO_UNKNOWN = {
    "locks.py",
    "training/store.py",
    "report/images.py",
    "commands/image_scores.py",
    "metrics/features.py",
    "training/checkpoint.py",
    "unknown_numbers.py",
}
"""Their own JSON is of words and whole numbers, of an accuracy, of settings that are refused where they are not finite, or is `to_json`."""
TABLE, PICTURES = "table.npy", "pictures.npy"


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read_all(directory: Path) -> dict[str, Any]:
    """Everything that the JSON files below a directory hold, by their paths in it, as a strict reader sees it."""
    found = {}
    for file in directory.rglob("*.json*"):
        texts = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text(encoding="utf-8")]
        found[file.relative_to(directory).as_posix()] = [strict(text) for text in texts]
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_not_finite_is_null_and_unknown(value: float) -> None:
    text = to_json({"a": [1, (value, 0.1)], "b": {"c": value, "d": None, "e": True}})
    assert strict(text) == {"a": [1, [None, 0.1]], "b": {"c": None, "d": None, "e": True}}
    assert from_json(json.dumps([1.5, float(value)])) == from_json(to_json([1.5, value])) == [1.5, None]
    (back,) = with_nan(from_json(to_json([value])))
    assert math.isnan(back) and math.isnan(number(None)) and number(3) == 3.0 and math.isnan(number(True))
    assert shown_number(back, ".2f") == shown_number(None, ".2f") == "unknown" and shown_number(1.25, ".1g") == "1"
    assert shown_estimate({"value": 0.5, "std_error": None}, 2) == "0.50 +- unknown"


def test_floats_come_back_bit_for_bit() -> None:
    values = [0.1, 1e-308, 5e-324, 1 / 3, -0.0, 1.7976931348623157e308]
    assert [value.hex() for value in from_json(to_json(values))] == [value.hex() for value in values]


def test_json_is_written_by_to_json_where_a_number_may_be_unknown() -> None:
    writers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dump", "dumps") and ast.unparse(node.value) == "json":
                writers.add(path.relative_to(PACKAGE).as_posix())
    assert writers == NO_UNKNOWN


@pytest.fixture
def not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that are not finite at the first two noise levels."""
    measure = Validation.measure
    monkeypatch.setattr(Validation, "measure", lambda *given: [math.nan, math.inf, *measure(*given)[2:]])


def test_no_file_of_a_run_on_pictures_holds_nan(sde_gen_command: Command, tmp_path: Path, not_finite: None) -> None:
    two = np.random.default_rng(0).integers(256, size=(2, 1, 6, 6), dtype=np.uint8)
    np.save(tmp_path / PICTURES, np.tile(two, (40, 1, 1, 1)))  # so that every held-out picture is a training picture too
    run = tmp_path / "run"
    assert sde_gen_command("run", *TINY_RUN, "--data", PICTURES, "--solver", "em", "--steps", "3", "--out", str(run))[0] == 0
    code, out, err = sde_gen_command("likelihood", "--run", str(run), "--images", "1", "--tolerance", "1e-2", "--probes", "1")
    assert (code, err) == (0, []) and any(line.startswith("training") and "+- unknown bits/dim" in line for line in out)
    found = read_all(run)
    (ratio,) = (scores["neighbour_ratio"] for scores in found["metrics.json"][0]["solvers"].values())
    assert ratio == {"value": None, "std_error": None, "reason": "every held-out item is a training item"}
    entries = [entry for entry in found["history.jsonl"] if "level_loss" in entry]
    assert entries and all(entry["level_loss"][:2] == [None, None] and entry["validation"] is None for entry in entries)
    (history,) = found["history.json"]
    assert [entry for entry in history["history"] if "level_loss" in entry] == entries
    parts = found["likelihood/likelihood.json"][0]["parts"]
    assert parts["training"]["std_error"] is None and parts["training"]["dequantisation"] is None
    assert "one item has no standard error" in parts["training"]["reason"] and "--draws" in parts["training"]["reason"]
    assert "none drew no value" in next(part for name, part in parts.items() if "chain of 1000" in name)["reason"]
    saved = read_run(run)
    assert "large noise unknown" in saved.loss_summary()[0] and any("not finite" in line for line in warnings(saved))
    assert not saved.lost and "cannot be shown" not in write_report([run]).read_text(encoding="utf-8")


def test_no_file_of_a_run_on_a_table_holds_nan(sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / TABLE, np.random.default_rng(0).normal(size=(100, 2)))
    run = tmp_path / "run"
    assert sde_gen_command("run", *TINY_RUN, "--data", TABLE, "--solver", "em", "--steps", "3", "--out", str(run))[0] == 0
    together = compare.sample_together

    def lost(*given: Any, **options: Any) -> Any:
        out = together(*given, **options)
        return replace(out, x=out.x * math.nan, failed=torch.ones_like(out.failed)) if options["solver"] == "em" else out

    monkeypatch.setattr(compare, "sample_together", lost)
    assert sde_gen_command("compare", "--run", str(run), "--solvers", "em,ddim", "--calls", "4", "--samples", "24")[0] == 0
    finding = Finding("weights", "fault", "17 are NaN", "train again", {"norm": math.nan, "ratio": math.inf, "count": 17.0})
    monkeypatch.setattr("sde_gen.commands.doctor.diagnose", lambda *_: [finding])
    assert sde_gen_command("doctor", "--run", str(run))[0] == 1
    found = read_all(run)
    assert found["doctor.json"][0][0]["numbers"] == {"norm": None, "ratio": None, "count": 17.0}
    (saved,) = found["compare/compare.json"]
    assert saved["held_out"] is None
    assert saved["held_out_reason"] == "10 items are held out, fewer than the 24 at which distances are taken"
    rows = saved["rows"]
    assert rows[0]["reason"] == "not measured: 24 of 24 samples are not finite" and "distance" not in rows[0]
    assert "reason" not in rows[1] and rows[1]["distance"]["value"] > 0
    unknown = {"value": None, "std_error": None}
    for ours, held_out in ((unknown, unknown), (rows[1]["distance"] | {"std_error": None}, unknown)):
        rows[1]["distance"], saved["held_out"] = ours, rows[1] | {"distance": held_out}
        (run / "compare" / "compare.json").write_text(json.dumps(saved))
        assert "cannot be shown" not in write_report([run]).read_text(encoding="utf-8")


def test_a_training_goes_on_from_unknown_numbers_to_the_same_network(
    sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_finite: None
) -> None:
    np.save(tmp_path / TABLE, np.random.default_rng(0).normal(size=(60, 2)))
    arguments = ["run", *TINY_RUN, "--data", TABLE, "--solver", "em", "--set", "training.evaluations=4"]
    assert sde_gen_command(*arguments, "--out", "whole")[0] == 0
    advance = Trainer.advance

    def interrupted(self: Trainer) -> Any:
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    assert sde_gen_command(*arguments, "--out", "parts")[0] == 130
    monkeypatch.setattr(Trainer, "advance", advance)
    state = read_state(tmp_path / "parts" / "checkpoint")
    assert state is not None and [entry["validation"] for entry in state[1]["history"] if "validation" in entry] == [None, None]
    restored: list[dict[str, Any]] = []
    restore = Trainer.restore
    monkeypatch.setattr(Trainer, "restore", lambda self, state: restored.extend(restore(self, state) or self.result.history))
    assert read_all(tmp_path / "parts") and sde_gen_command(*arguments, "--out", "parts")[0] == 0
    assert [math.isnan(entry["validation"]) for entry in restored if "validation" in entry] == [True, True]
    whole, parts = (sde_gen.load(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    losses = [[entry | {"seconds": 0} for entry in read_all(tmp_path / name)["history.jsonl"]] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_a_file_of_an_earlier_version_is_read_as_a_new_one(sde_gen_command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / TABLE, np.random.default_rng(0).normal(size=(60, 2)))
    run = tmp_path / "run"
    assert sde_gen_command("run", *TINY_RUN, "--data", TABLE, "--solver", "em", "--steps", "3", "--out", str(run))[0] == 0
    texts = []
    for dumps in (json.dumps, to_json):
        for file, edit in {
            "metrics.json": lambda v: v["solvers"]["em"].update(sliced_wasserstein={"value": math.nan, "std_error": math.inf}),
            "history.json": lambda v: v["history"][-1].update(loss=math.nan, level_loss=[math.nan] * len(v["linear"]["levels"])),
        }.items():
            value = json.loads((run / file).read_text())
            edit(value)
            (run / file).write_text(dumps(value))
        texts.append(re.sub(r'data:[^"]*', "", write_report([run]).read_text(encoding="utf-8")))
    assert texts[0] == texts[1] and "unknown ± unknown" in texts[0] and "unknown at the end" in texts[0]


def test_a_fitted_grid_keeps_its_unknown_errors_in_a_checkpoint(tmp_path: Path) -> None:
    model = sde_gen.ScoreModel(sde_gen.make_network("mlp", (2,), width=8, depth=1), sde_gen.make_sde("vp"))
    fitted = FittedGrid("ddim", 2, (1.0, 0.5, model.sde.t_min), error=0.5, default_error=math.inf)
    model.fitted[fitted.key] = fitted
    sde_gen.save(model, tmp_path, extra={"linear": [math.nan, 0.5]})
    (kept,) = (values for (values,) in read_all(tmp_path).values() if "fitted" in values)
    assert (kept["fitted"][0]["error"], kept["fitted"][0]["default_error"], kept["extra"]["linear"]) == (0.5, None, [None, 0.5])
    (back,) = sde_gen.load(tmp_path).fitted.values()
    assert back.error == 0.5 and math.isnan(back.default_error)


def test_settings_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = sde_gen.ScoreModel(sde_gen.make_network("mlp", (2,), width=8, depth=1), sde_gen.make_sde("vp"))
    model.network.options["width"] = math.inf  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="finite numbers"):
        sde_gen.save(model, tmp_path)
