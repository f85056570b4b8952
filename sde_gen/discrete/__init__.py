"""The DDPM view: the same path looked at on N points. The only place that knows indices."""

from .bound import Elbo, Part
from .chain import BETAS, VARIANCES, ChainSDE, DiscreteChain, make_chain
from .elbo import elbo, elbo_continuous
from .terms import discretized_log_prob, prior_kl, step_kl

__all__ = [
    "BETAS",
    "VARIANCES",
    "ChainSDE",
    "DiscreteChain",
    "Elbo",
    "Part",
    "discretized_log_prob",
    "elbo",
    "elbo_continuous",
    "make_chain",
    "prior_kl",
    "step_kl",
]
