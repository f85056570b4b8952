"""The trace of a denoiser's Jacobian: exact, and estimated from products with random vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ..randomness import NoiseStream

_CHUNK = 1 << 21
"""Numbers in the products that the exact trace has in hand at once."""

PROBES = ("rademacher", "gaussian")


class Divergence(ABC):
    """tr(J - G), J = d denoised/dx the Jacobian of a forward pass that is there already, G a symmetric matrix that is known.

    columns: independent estimates for each sample; smooth: whether they are smooth along a path, so that an integrator may
    judge its steps by them; exact: whether they are the trace itself.
    """

    columns: int
    smooth: bool = True
    exact: bool = False

    def __init__(self, noise: NoiseStream, probes: int, kind: str, keep: bool) -> None:
        """noise: of shape (B, probes, D); keep: whether the same path will be asked for again."""
        self.noise, self.columns, self.kind, self.keep = noise, probes, kind, keep

    @abstractmethod
    def trace(self, denoised: Tensor, x: Tensor, known: Callable[[Tensor], Tensor], rows: Tensor, evaluation: int) -> Tensor:
        """The estimates (b, columns), float64. denoised: a function of x (b, *); known(v): v' G v for v (b or 1, k, D), (b, k);
        rows: which samples of the batch these are; evaluation: how many there were on the way here."""

    def _draw(self) -> Tensor:
        z = self.noise.draw()
        return torch.where(z < 0, -1.0, 1.0).to(z) if self.kind == "rademacher" else z


class Exact(Divergence):
    """sum_i e_i' J e_i over all D axes, in pieces so that memory stays bounded. Costs D products with the Jacobian."""

    exact = True

    def __init__(self, noise: NoiseStream, probes: int, kind: str, keep: bool) -> None:
        super().__init__(noise, 1, kind, keep)

    def trace(self, denoised: Tensor, x: Tensor, known: Callable[[Tensor], Tensor], rows: Tensor, evaluation: int) -> Tensor:
        batch, dim = len(x), x[0].numel()
        total = torch.zeros(batch, dtype=torch.float64, device=x.device)
        graph = torch.is_grad_enabled()
        piece = max(1, min(dim, _CHUNK // max(1, x.numel())))
        eye = torch.eye(dim, dtype=x.dtype, device=x.device)
        for first in range(0, dim, piece):
            axes = eye[first : first + piece]
            vectors = axes[:, None].expand(-1, batch, -1).reshape(len(axes), *x.shape)
            products = _products(denoised, x, vectors, graph)
            total = total + torch.einsum("kbd,kd->b", products.flatten(2), axes).double() - known(axes[None].double()).sum(1)
        return total[:, None]


class Hutchinson(Divergence):
    """v' (J - G) v, one v of each column for the whole path: the estimate of Hutchinson 1990 as used by Grathwohl et al. 2019
    (arXiv:1810.01367, FFJORD), so that the path's integral is a smooth function of the path."""

    _vectors: Tensor | None = None

    def trace(self, denoised: Tensor, x: Tensor, known: Callable[[Tensor], Tensor], rows: Tensor, evaluation: int) -> Tensor:
        return _quadratic(denoised, x, self.vectors(evaluation)[rows], known)

    def vectors(self, evaluation: int) -> Tensor:
        """The probes (B, columns, D) of this evaluation."""
        if self._vectors is None:
            self._vectors = self._draw()
        return self._vectors


class Resampled(Hutchinson):
    """v' (J - G) v with new v at each evaluation: what one gets wrong the next does not repeat, so that the errors of an
    integral over some forty evaluations average out, where Hutchinson's add up. Unbiased for the integrator's sum, since the
    path and its steps do not depend on v. Another tolerance draws at other places and so has another error."""

    smooth = False

    def __init__(self, noise: NoiseStream, probes: int, kind: str, keep: bool) -> None:
        super().__init__(noise, probes, kind, keep)
        self._drawn: dict[int, Tensor] = {}

    def vectors(self, evaluation: int) -> Tensor:
        if evaluation not in self._drawn:
            if not self.keep:
                self._drawn.clear()
            self._drawn[evaluation] = self._draw()
        return self._drawn[evaluation]


DIVERGENCES: dict[str, type[Divergence]] = {"exact": Exact, "hutchinson": Hutchinson, "resampled": Resampled}


def _quadratic(denoised: Tensor, x: Tensor, vectors: Tensor, known: Callable[[Tensor], Tensor]) -> Tensor:
    graph = torch.is_grad_enabled()
    stacked = vectors.transpose(0, 1)
    columns = []
    for k, v in enumerate(stacked):
        last = k + 1 == len(stacked)
        product = _gradient(denoised, x, v.reshape(x.shape), retain_graph=graph or not last, create_graph=graph)
        columns.append((product.flatten(1).double() * v.double()).sum(1))
    return torch.stack(columns, 1) - known(vectors.double())


def _products(denoised: Tensor, x: Tensor, vectors: Tensor, graph: bool) -> Tensor:
    """v' J for each of `vectors` (k, *x.shape)."""
    options = {"retain_graph": True, "create_graph": graph}
    try:
        return torch.autograd.grad(denoised, x, vectors, is_grads_batched=True, **options)[0]
    except RuntimeError:  # a network with an operation that cannot be batched
        return torch.stack([_gradient(denoised, x, v, **options) for v in vectors])


def _gradient(denoised: Tensor, x: Tensor, vector: Tensor, **options: bool) -> Tensor:
    """v' J, shape of `x`."""
    try:
        return torch.autograd.grad(denoised, x, vector, **options)[0]
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        raise TypeError(
            "the network recomputes activations with torch.utils.checkpoint(use_reentrant=True), which has no gradient with respect to a "
            "chosen input: give it use_reentrant=False"
        ) from error
