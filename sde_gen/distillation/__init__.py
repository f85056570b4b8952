"""Distillation: flow maps, which sample in one to four network calls, from the weights of a score model."""

from .distill import distill

__all__ = ["distill"]
