"""Training: the loop, the average of the weights, the loss by noise level, checkpoints."""

from .checkpoint import CheckpointError, load, read_extra, save, save_fitted
from .ema import power_average
from .loop import DECAYS, TrainingError, TrainResult, TrainSettings, build_model, fit, train
from .objective import OBJECTIVES, Objective
from .validation import Validation

__all__ = [
    "DECAYS",
    "OBJECTIVES",
    "CheckpointError",
    "Objective",
    "TrainResult",
    "TrainSettings",
    "TrainingError",
    "Validation",
    "build_model",
    "fit",
    "load",
    "power_average",
    "read_extra",
    "save",
    "save_fitted",
    "train",
]
