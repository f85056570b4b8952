"""Solvers of the reverse-time family. A new one is a file with a class and a line in `SOLVERS`."""

from __future__ import annotations

from typing import Any

from ..registry import Registry, build, canonical
from .ab import AdamsBashforth
from .adaptive_sde import AdaptiveSDE
from .ancestral import Ancestral
from .angle import AngleMultistep
from .base import FixedStepSolver, Run, Solver, Update, run_updates
from .ddim import DDIM
from .dpm import ExponentialMultistep
from .dpm_sde import ExponentialMultistepSDE
from .edm import EDM
from .em import EulerMaruyama
from .graph import Graphed
from .grids import GRIDS, make_grid
from .heun import Heun
from .langevin import AnnealedLangevin
from .ode import ProbabilityFlow
from .particles import Populated
from .pc import PredictorCorrector
from .restart import Restart
from .reverse_diffusion import ReverseDiffusion
from .torchsde import TorchSDE
from .unipc import UniPC

SOLVERS: Registry[type[Solver]] = Registry(
    {
        "em": EulerMaruyama,
        "pc": PredictorCorrector,
        "ode": ProbabilityFlow,
        "ancestral": Ancestral,
        "reverse_diffusion": ReverseDiffusion,
        "langevin": AnnealedLangevin,
        "dpm_sde": ExponentialMultistepSDE,
        "edm": EDM,
        "restart": Restart,
        "adaptive_sde": AdaptiveSDE,
        "torchsde": TorchSDE,
        "ddim": DDIM,
        "heun": Heun,
        "ab": AdamsBashforth,
        "dpm": ExponentialMultistep,
        "unipc": UniPC,
        "angle": AngleMultistep,
    },
    aliases={"dpmpp": "dpm", "deis": "ab"},
)
"""The solvers by name; the field's other names, DPM-Solver++ and DEIS, are aliases."""


def solver_name(name: str) -> str:
    """The name under which a solver is registered, of that name or of one of the field's other names for it."""
    return canonical(SOLVERS, "solver", name)


def make_solver(name: str, **options: Any) -> Solver:
    """The registered solver `name` with its own options, for example `make_solver("pc", snr=0.2)`.

    Raises ValueError for an unknown name or option, with the ones allowed, and for a value out of its range.
    """
    return build(SOLVERS, "solver", name, options)


__all__ = [
    "DDIM",
    "EDM",
    "GRIDS",
    "SOLVERS",
    "AdamsBashforth",
    "AdaptiveSDE",
    "Ancestral",
    "AngleMultistep",
    "AnnealedLangevin",
    "EulerMaruyama",
    "ExponentialMultistep",
    "ExponentialMultistepSDE",
    "FixedStepSolver",
    "Graphed",
    "Heun",
    "Populated",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Restart",
    "ReverseDiffusion",
    "Run",
    "Solver",
    "TorchSDE",
    "UniPC",
    "Update",
    "make_grid",
    "make_solver",
    "run_updates",
    "solver_name",
]
