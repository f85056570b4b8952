"""The DDPM view: the same path looked at on N points. The only place that knows indices."""

from .bound import Elbo, Part
from .chain import VARIANCES, DiscreteChain, chain_of, make_chain
from .elbo import elbo, elbo_continuous
from .objectives import INDEX_SAMPLERS, OBJECTIVES, IndexSampler, chain_loss
from .terms import discretized_log_prob, prior_kl, step_kl, step_log_ratio
from .view import ChainView

__all__ = [
    "INDEX_SAMPLERS",
    "OBJECTIVES",
    "VARIANCES",
    "ChainView",
    "DiscreteChain",
    "Elbo",
    "IndexSampler",
    "Part",
    "chain_loss",
    "chain_of",
    "discretized_log_prob",
    "elbo",
    "elbo_continuous",
    "make_chain",
    "prior_kl",
    "step_kl",
    "step_log_ratio",
]
