"""Other libraries' checkpoints in and out: nothing in them is executed, and what they do not say is asked for."""

from .adapters import as_azula, as_deepinv, as_kdiffusion
from .check import Check, check_external
from .feature_networks import load_features
from .formats import FORMATS, ExternalModel, load_external
from .presets import PRESETS

__all__ = [
    "FORMATS",
    "PRESETS",
    "Check",
    "ExternalModel",
    "as_azula",
    "as_deepinv",
    "as_kdiffusion",
    "check_external",
    "load_external",
    "load_features",
]
