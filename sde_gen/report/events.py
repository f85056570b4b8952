"""The history of a training as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MISSING = "--tensorboard needs a package that is not installed: pip install tensorboard (or sde_gen[tensorboard])"


def require_tensorboard() -> None:
    """ImportError, one line with what to install, where the package tensorboard is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error


class EventWriter:
    """Event files in `directory`, a scalar for each number of a history's entries: loss, validation, samples/s, and the loss by noise level
    as level_loss/<half log-SNR>. `first_step`: where a training goes on, what was written from that step on no longer counts.

    batch: samples a step. ImportError as `require_tensorboard`. A context manager.
    """

    def __init__(self, directory: Path, batch: int, first_step: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step or None)
        self.batch = batch
        self.before: tuple[int, float] | None = None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write one entry of the history."""
        step, seconds = int(entry["step"]), float(entry["seconds"])
        scalars = {name: float(entry[name]) for name in ("loss", "validation") if name in entry}
        if "level_loss" in entry:
            levels = zip(entry["levels"], entry["level_loss"], strict=True)
            scalars |= {f"level_loss/{level:+.2f}": float(value) for level, value in levels}
        steps, spent = (step, seconds) if self.before is None else (step - self.before[0], seconds - self.before[1])
        if self.before is not None and spent > 0:  # the first entry's seconds may be of a training that this one goes on from
            scalars["samples_per_second"] = steps * self.batch / spent
        self.before = step, seconds
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.writer.close()
