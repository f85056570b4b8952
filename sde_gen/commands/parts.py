"""Trainings that a command needs beside one another: each in a checkpoint that tells what it was made of, so that it is used again, or
gone on with where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..training import CheckpointError, State, TrainResult, fit, read_extra, read_state, save
from .config import ConfigError
from .training_files import environment

KEEP_SECONDS = 30.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A training in `checkpoint`.

    identity: JSON-able values; other ones are another network. beside: what else is kept with it. again: what trains it anew, for
    messages.
    """

    checkpoint: Path
    identity: Mapping[str, Any]
    beside: Mapping[str, Any]
    again: str = "--retrain"

    def earlier(self, say: Say) -> tuple[dict[str, Any] | None, State | None]:
        """What is known of a training that is there, and the state to go on from where it was stopped; None and None where none is.

        ConfigError, one line, where it is of another identity or cannot be read.
        """
        if not self.checkpoint.exists():
            return None, None
        try:
            extra = read_extra(self.checkpoint)
            known = extra["identity"]
            other = [f"{name} {known.get(name)!r}" for name, value in self.identity.items() if known.get(name) != value]
            if other:
                remedy = f"the same flags reuse it, {self.again} replaces it, --out DIR spares it"
                raise ConfigError(f"{self.checkpoint} holds a network of {', '.join(other)}: {remedy}")
            if extra["complete"]:
                say(f"reusing   the network in {self.checkpoint} ({extra['steps']} steps, {extra['seconds']:.0f} s of training)")
                return extra, None
            say(f"going on  with the training in {self.checkpoint} from step {extra['steps']}")
            return extra, read_state(self.checkpoint)
        except (CheckpointError, KeyError, AttributeError) as error:
            raise ConfigError(f"{self.checkpoint} cannot be read: {error}; {self.again} trains again") from error

    def train(
        self, model: Any, data: Any, settings: Any, device: torch.device, show: bool, state: State | None, **options: Any
    ) -> TrainResult:
        """`fit`, kept every `KEEP_SECONDS`, after Ctrl-C and at its end."""

        def keep(step: int, result: TrainResult, complete: bool = False) -> None:
            extra: dict[str, Any] = {"complete": complete, "steps": step, "seconds": result.seconds, "identity": dict(self.identity)}
            extra |= {"environment": environment(device), **self.beside}
            save(result.raw, self.checkpoint, ema=result.model.network, extra=extra, state=result.state())  # type: ignore[arg-type]

        return fit(
            *(model, data, settings),
            device=device,
            progress=show,
            on_checkpoint=keep,
            checkpoint_seconds=KEEP_SECONDS,
            resume=state,
            on_finish=lambda result: keep(result.steps, result, True),
            **options,
        )
