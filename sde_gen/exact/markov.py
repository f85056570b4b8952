"""A Markov chain of symbols: the law of sequences for which discrete diffusion is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


class MarkovChain:
    """Sequences x^1 .. x^L of symbols 0 .. K - 1 with p(x) = pi(x^1) prod_l A(x^l, x^{l+1}).

    initial: pi, (K,), positive weights in any unit.
    transition: A, (K, K), whose rows are weights of what comes next.
    length: L.
    """

    def __init__(self, initial: Tensor, transition: Tensor, length: int) -> None:
        self.initial = initial.double() / initial.double().sum()
        self.transition = transition.double() / transition.double().sum(1, keepdim=True)
        self.shape = (length,)

    @property
    def symbols(self) -> int:
        return len(self.initial)

    def entropy(self) -> float:
        """-E log p(x) in nats: that of the first symbol, and of each step from where the one before it lies."""
        of_row = torch.special.entr(self.transition).sum(1)
        total, here = torch.special.entr(self.initial).sum(), self.initial
        for _ in range(self.shape[0] - 1):
            total = total + here @ of_row
            here = here @ self.transition
        return float(total)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B, L) gives (B,) in float64."""
        return self.initial.log()[x[:, 0]] + self.transition.log()[x[:, :-1], x[:, 1:]].sum(1)

    def all(self) -> Tensor:
        """Every sequence, (K^L, L), the last symbol running fastest."""
        return torch.cartesian_prod(*[torch.arange(self.symbols)] * self.shape[0]).reshape(-1, *self.shape)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """(count, L) draws."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.multinomial(self.initial.expand(count, -1), 1, generator=generator)
        for _ in range(self.shape[0] - 1):
            x = torch.cat((x, torch.multinomial(self.transition[x[:, -1]], 1, generator=generator)), dim=1)
        return x

    def posterior(self, evidence: Tensor) -> Tensor:
        """p(x^l | evidence) for each l, (B, L, K) in float64, by one pass forwards and one backwards.

        evidence: (B, L, K), the likelihood of what was seen at l for each symbol there: ones where nothing was.
        """
        evidence = evidence.double()
        before = [self.initial.expand(len(evidence), -1)]  # of the evidence to the left
        after = [torch.ones_like(before[0])]  # of the evidence to the right
        for left, right in zip(range(evidence.shape[1] - 1), range(evidence.shape[1] - 1, 0, -1), strict=True):
            before.append(_scaled((before[-1] * evidence[:, left]) @ self.transition))
            after.append(_scaled((after[-1] * evidence[:, right]) @ self.transition.T))
        return _scaled(torch.stack(before, 1) * evidence * torch.stack(after[::-1], 1))


def _scaled(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
