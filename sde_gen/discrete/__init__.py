"""The DDPM view: the same path looked at on N points. This is the only room that knows indices.

chain: betas and marginals by index, posterior, variances. view: a model's reverse chain by index.
elbo: the evidence lower bound of a chain and of its continuous limit; elbo_terms: its terms in closed form; elbo_estimate: the
batches, sums and errors behind it. objectives: training losses.
"""

from .chain import VARIANCES, DiscreteChain, chain_of, make_chain
from .elbo import elbo, elbo_continuous
from .elbo_estimate import Elbo
from .elbo_terms import discretized_log_prob, prior_kl, step_kl, step_log_ratio
from .objectives import INDEX_SAMPLERS, OBJECTIVES, IndexSampler, chain_loss
from .view import ChainView

__all__ = [
    "INDEX_SAMPLERS",
    "OBJECTIVES",
    "VARIANCES",
    "ChainView",
    "DiscreteChain",
    "Elbo",
    "IndexSampler",
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
