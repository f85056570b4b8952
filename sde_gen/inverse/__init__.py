"""Inverse problems: what data are, given a measurement of them."""

from .conditioned import Conditioned
from .measurement import MEASURED, Measurement
from .methods import METHODS, posterior
from .mmps import MMPS
from .noise import Gaussian, Noise, Poisson, Quantised
from .operators import Blur, Crop, Downsample, FourierMask, Function, Grey, Mask, Matrix, Operator
from .request import Posterior
from .twisted import Twisted

__all__ = [
    "MEASURED",
    "METHODS",
    "MMPS",
    "Blur",
    "Conditioned",
    "Crop",
    "Downsample",
    "FourierMask",
    "Function",
    "Gaussian",
    "Grey",
    "Mask",
    "Matrix",
    "Measurement",
    "Noise",
    "Operator",
    "Poisson",
    "Posterior",
    "Quantised",
    "Twisted",
    "posterior",
]
