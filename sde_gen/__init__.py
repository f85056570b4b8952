"""sde_gen: score-based diffusion models in continuous time."""

from .losses import dsm_loss
from .prior import Moments
from .reverse import ReverseSDE
from .sampling import Samples, SolverError, sample
from .score import Denoiser, ScoreModel
from .sdes import SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE, make_sde
from .solvers import Solver, make_solver
from .version import __version__ as __version__

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "Denoiser",
    "Moments",
    "ReverseSDE",
    "Samples",
    "ScoreModel",
    "Solver",
    "SolverError",
    "SubVPSDE",
    "dsm_loss",
    "make_sde",
    "make_solver",
    "sample",
]
