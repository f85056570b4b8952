"""The doctor on a run directory, as it lies there: nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from ..diagnostics.doctor import diagnose
from ..diagnostics.finding import Finding
from ..locks import held
from ..report.files import write_text
from ..training import load, read_extra
from ..unknown_numbers import to_json
from .config import ConfigError, RunConfig
from .reuse import changed_data
from .run_data import config_of_run, load_data


def doctor_run(
    directory: Path, device: torch.device | str = "cpu", samples: int | None = None, say: Callable[[str], None] = print
) -> list[Finding]:
    """Diagnose the network in `directory` with its data, its averaged and last weights and its own sampling settings; say what is found
    and keep it in doctor.json. `samples`: as in `diagnose`. ConfigError or CheckpointError where there is no run to examine;
    LockError where another process writes to the directory."""
    if samples is not None and samples != 0 and samples < 32:
        raise ConfigError(f"samples must be 0 or a whole number of at least 32, got {samples!r}")
    config = config_of_run(directory)
    with held(directory):
        findings = _findings(directory, config, device, samples)
        for finding in findings:
            for line in str(finding).splitlines():
                say(line)
        if not findings:
            say(f"nothing wrong found in {directory}: weights, data range, learning, meaning of the output, prior and solver steps")
        write_text(directory / "doctor.json", to_json([asdict(finding) for finding in findings], 1))
    return findings


def _findings(directory: Path, config: RunConfig, device: torch.device | str, samples: int | None) -> list[Finding]:
    model, raw = (load(directory / "checkpoint", ema, device) for ema in (True, False))
    data = load_data(config)
    changed = changed_data(directory / "checkpoint", config, data)
    chosen = config.sampling
    sampling = {"solver": chosen.solver, "steps": chosen.steps, "grid": chosen.grid, **chosen.options}
    try:
        findings = diagnose(model, data, raw, sampling, chosen.seed, samples)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if changed is not None:
        findings.insert(0, Finding("changed data", "warning", changed, "train again on the data as they are: --retrain", {}))
    extra = read_extra(directory / "checkpoint")
    if extra.get("complete") is False:
        left = f"the training has not ended: the checkpoint is of step {extra.get('steps')} of {config.training.steps}"
        findings.insert(0, Finding("unfinished training", "warning", left, "sde-gen run, with the same flags, goes on with it", {}))
    return findings
