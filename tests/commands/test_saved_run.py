"""Warnings of a run follow from its numbers and their errors."""

from pathlib import Path
from typing import Any

import pytest

from sde_gen.commands import saved_run
from sde_gen.commands.config import resolve
from sde_gen.commands.saved_run import SavedRun, warnings


def warned(path: Path, scores: dict[str, tuple[float, float]], loss: float | None = 0.3) -> list[str]:
    """The warnings of a run with these values and errors, but for those of its missing checkpoint."""
    solver: dict[str, Any] = {name: {"value": value, "std_error": error} for name, (value, error) in scores.items()}
    history = [{"step": 1, "loss": 1.0}] if loss is None else [{"levels": [4.0, 0.0, -4.0], "level_loss": [loss] * 3}]
    linear = {"levels": [4.0, 0.0, -4.0], "linear": [0.5] * 3}
    run = SavedRun(path, resolve(), {"solvers": {"dpm": solver}}, {"history": history, "linear": linear})
    return [line for line in warnings(run) if "checkpoint" not in line]


GOOD = {
    "neighbour_ratio": (1.09, 0.02), "frechet_distance": (4.1, 1.5), "held_out_frechet_distance": (4.0, 1.5),
    "sliced_wasserstein": (0.06, 0.01), "held_out_sliced_wasserstein": (0.05, 0.01),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("neighbour_ratio", 2.62, 0.05, "the samples are 2.62 ± 0.05 times as far from the training data as held-out data"),
        ("neighbour_ratio", 2.62, 0.7, None),
        ("frechet_distance", 338.0, 11.0, "338 ± 11, is far above held-out data's, 4 ± 1.5"),
        ("frechet_distance", 60.0, 11.0, None),
        ("sliced_wasserstein", 0.5, 0.02, "0.5 ± 0.02, is far above held-out data's"),
        ("sliced_wasserstein", 0.5, 0.3, None),
    ],
)
def test_samples_that_stray_are_warned_of_beyond_the_errors(
    tmp_path: Path, name: str, value: float, error: float, said: str | None
) -> None:
    assert warned(tmp_path, GOOD) == []
    found = warned(tmp_path, GOOD | {name: (value, error)})
    assert found == [] if said is None else len(found) == 1 and said in found[0]


def test_numbers_of_other_data_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = {"sha256": "a"}, {"sha256": "b"}
    monkeypatch.setattr(saved_run, "read_extra", lambda _: {"complete": True, "data": mine})
    solvers = {"dpm": {"data": other}, "ddim": {"data": mine}, "of an earlier version": {}}
    run = SavedRun(tmp_path, resolve(), {"solvers": solvers}, likelihood={"data": other}, comparison={"data": mine})
    found = [line.split(": measured against other data")[0] for line in warnings(run) if "other data" in line]
    assert found == ["dpm", "the likelihood"]


def test_a_loss_that_was_not_measured_or_is_a_zero_networks_is_warned_of(tmp_path: Path) -> None:
    assert "no loss by noise level" in warned(tmp_path, GOOD, None)[0]
    assert all("no better than zero" in line for line in warned(tmp_path, GOOD, 1.0)) and len(warned(tmp_path, GOOD, 1.0)) == 3
