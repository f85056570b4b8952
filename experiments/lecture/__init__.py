"""The lecture: one lesson for each idea of the field, in the order in which it is told. `LESSONS` names them; see lesson.py."""

from __future__ import annotations

from importlib import import_module

from .lesson import Lesson, Skipped, Studio

NAMES = (
    "forward",
    "score_matching",
    "density",
    "noise",
    "reverse_kernel",
    "chain",
    "predictor_corrector",
    "progressive",
    "interpolation",
    "two_clocks",
    "likelihood",
    "guidance",
    "solvers",
    "larger_digits",
    "restoration",
)
LESSONS: dict[str, Lesson] = {name: import_module(f".{name}", __name__).LESSON for name in NAMES}

__all__ = ["LESSONS", "Lesson", "Skipped", "Studio"]
