"""Inverse problems: what data are, given a measurement of them."""

from .measurement import Measurement
from .noise import Gaussian, Noise, Poisson, Quantised
from .operators import Blur, Crop, Downsample, FourierMask, Function, Grey, Mask, Matrix, Operator

__all__ = [
    "Blur",
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
    "Quantised",
]
