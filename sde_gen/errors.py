"""Errors that more than one room raises."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, in one line."""
