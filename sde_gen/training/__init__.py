"""What fits a network to data: settings, objectives and losses, the step and the loop around it, the average of the weights, the loss
by noise level and what it says, checkpoints and the state that a training goes on from."""

from .averages import choose_average
from .checkpoint import State, load, read_extra, read_state, save, save_fitted
from .classifier import NoisyClassifier, train_classifier
from .ema import PowerAverage
from .loop import Interrupted, build_model, fit, train
from .objective import Objective
from .pairs import ClipSettings, load_clip, save_clip, train_clip
from .result import TrainingError, TrainResult
from .settings import DECAYS, OBJECTIVES, SHARDINGS, TrainSettings, check_layout, check_processes
from .store import CheckpointError
from .validation import Validation

__all__ = [
    "DECAYS",
    "OBJECTIVES",
    "SHARDINGS",
    "CheckpointError",
    "ClipSettings",
    "Interrupted",
    "NoisyClassifier",
    "Objective",
    "PowerAverage",
    "State",
    "TrainResult",
    "TrainSettings",
    "TrainingError",
    "Validation",
    "build_model",
    "check_layout",
    "check_processes",
    "choose_average",
    "fit",
    "load",
    "load_clip",
    "read_extra",
    "read_state",
    "save",
    "save_clip",
    "save_fitted",
    "train",
    "train_classifier",
    "train_clip",
]
