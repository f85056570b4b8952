"""sde_gen: score-based diffusion models in continuous time."""

from . import threads as threads  # before all that imports PyTorch
from .data import Dataset, Normalizer, load_dataset
from .diagnostics.doctor import diagnose
from .diagnostics.finding import Finding
from .diagnostics.information import Information, information
from .discrete import DiscreteChain, elbo, elbo_continuous, make_chain
from .distillation import distill
from .exact.empirical import empirical_score
from .external import as_azula, as_deepinv, as_kdiffusion, check_external, from_diffusers, load_external, to_diffusers
from .guidance import guide
from .inverse import Measurement, Posterior, edit, posterior
from .likelihood.bits_per_dim import BitsPerDim, bits_per_dim
from .likelihood.classify import Classes, classify
from .likelihood.flow import LogLikelihood, log_likelihood
from .models.denoiser import Denoiser, Prediction, Wrapper
from .models.flow_map import FlowMap
from .models.moments import Moments
from .models.reverse import ReverseSDE
from .models.score import ScoreModel
from .networks import make_network, register_network
from .sampling.failures import SolverError
from .sampling.fitted import FittedGrid
from .sampling.fitting import fit_grid
from .sampling.latents import encode, interpolate, mix
from .sampling.sample import Samples, sample
from .sdes import SDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE, make_sde, register_sde
from .solvers import Solver, make_solver
from .training import CheckpointError, load, save, train, train_classifier
from .training.losses import dsm_loss
from .version import __version__ as __version__

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "BitsPerDim",
    "CheckpointError",
    "Classes",
    "CosineVPSDE",
    "Dataset",
    "Denoiser",
    "DiscreteChain",
    "Finding",
    "FittedGrid",
    "FlowMap",
    "Information",
    "LogLikelihood",
    "Measurement",
    "Moments",
    "Normalizer",
    "Posterior",
    "Prediction",
    "ReverseSDE",
    "Samples",
    "ScoreModel",
    "Solver",
    "SolverError",
    "SubVPSDE",
    "Wrapper",
    "as_azula",
    "as_deepinv",
    "as_kdiffusion",
    "bits_per_dim",
    "check_external",
    "classify",
    "diagnose",
    "distill",
    "dsm_loss",
    "edit",
    "elbo",
    "elbo_continuous",
    "empirical_score",
    "encode",
    "fit_grid",
    "from_diffusers",
    "guide",
    "information",
    "interpolate",
    "load",
    "load_dataset",
    "load_external",
    "log_likelihood",
    "make_chain",
    "make_network",
    "make_sde",
    "make_solver",
    "mix",
    "posterior",
    "register_network",
    "register_sde",
    "sample",
    "save",
    "to_diffusers",
    "train",
    "train_classifier",
]
