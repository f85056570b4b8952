"""Other libraries' checkpoints in and out: nothing in them is executed, and what they do not say is asked for."""

from .adapters import as_azula, as_deepinv, as_kdiffusion
from .check import Check, check_external
from .diffusers_export import to_diffusers
from .diffusers_pipelines import from_diffusers, scheduler_times
from .feature_networks import load_features
from .formats import FORMATS, load_external
from .imported import ExternalModel
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
    "from_diffusers",
    "load_external",
    "load_features",
    "scheduler_times",
    "to_diffusers",
]
