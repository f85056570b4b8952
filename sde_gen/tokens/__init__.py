"""Discrete diffusion: symbols that are masked, changed at random or changed to near ones, the bound on their likelihood, and samples.

process = make_process("absorbing", symbols)         # or "uniform", "gaussian": q(x_t | x_0), entry by entry
model = TokenModel(network, process, shape)          # p(x_0 | x_t) by a network; ExactTokens of a law that is known
bound = token_bound(model, x)                        # -log p(x) at most, with error bars
out = sample_tokens(model, 16, "ancestral", steps=32, given=...)
"""

from .bound import TokenBound, token_bound
from .model import ExactTokens, GuidedTokens, TokenDenoiser, TokenModel
from .process import PROCESSES, Absorbing, DiscretisedGaussian, TokenProcess, Uniform, make_process
from .sampling import SAMPLERS, TokenSamples, sample_tokens

__all__ = [
    "PROCESSES",
    "SAMPLERS",
    "Absorbing",
    "DiscretisedGaussian",
    "ExactTokens",
    "GuidedTokens",
    "TokenBound",
    "TokenDenoiser",
    "TokenModel",
    "TokenProcess",
    "TokenSamples",
    "Uniform",
    "make_process",
    "sample_tokens",
    "token_bound",
]
