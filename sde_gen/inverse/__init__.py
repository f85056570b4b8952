"""Inverse problems: what data are, given a measurement of them."""

from .conditioned import Conditioned, Observed
from .daps import DAPS
from .ddnm import DDNM
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dps import DPS
from .edit import edit
from .exact_flow import ExactFlow
from .gibbs import Gibbs
from .measurement import MEASURED, Measurement
from .methods import METHODS, posterior
from .mmps import MMPS
from .noise import Gaussian, Noise, Poisson, Quantised
from .operators import Blur, Crop, Downsample, FourierMask, Function, Grey, Mask, Matrix, Operator
from .oracle import Oracle
from .pigdm import PiGDM
from .projection import Projection
from .repaint import RePaint
from .request import Posterior
from .tmpd import TMPD
from .twisted import Twisted

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "MEASURED",
    "METHODS",
    "MMPS",
    "TMPD",
    "Blur",
    "Conditioned",
    "Crop",
    "DiffPIR",
    "Downsample",
    "ExactFlow",
    "FourierMask",
    "Function",
    "Gaussian",
    "Gibbs",
    "Grey",
    "Mask",
    "Matrix",
    "Measurement",
    "Noise",
    "Observed",
    "Operator",
    "Oracle",
    "PiGDM",
    "Poisson",
    "Posterior",
    "Projection",
    "Quantised",
    "RePaint",
    "Twisted",
    "edit",
    "posterior",
]
