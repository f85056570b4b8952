"""The data's mean and covariance, and what they imply in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

MAX_COVARIANCE = 1024
"""Up to this many dimensions `Moments.fit` keeps the whole covariance; above it, each element's variance and the largest axes."""
MOST_AXES, MOST_NUMBERS = 128, 1 << 21
"""Largest number of principal axes that are kept where the whole covariance is not, and of the numbers in them."""
SEED = 0x6D6F6D
ITEMS, ITERATIONS = 4096, 3
"""Items of which the largest axes are found, and rounds of subspace iteration."""


class Moments(nn.Module):
    """Mean and covariance of data in normalised units, float64.

    mean: of one sample's shape (or broadcast to it).
    variance: one number for each element (broadcast likewise); or
    covariance: (D, D) over the flattened sample, kept as eigenvalues and eigenvectors.
    largest: beside `variance`, the principal axes that hold most of it: variances along them (k,), the axes as columns (D, k), and the
        variance along every direction that is orthogonal to them. `denoise`, `flow` and `spread` then use these.

    Raises ValueError where neither or both of variance and covariance are given, or a variance is negative.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None
    axis_values: Tensor | None
    axis_vectors: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor | None = None,
        covariance: Tensor | None = None,
        largest: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if (variance is None) == (covariance is None):
            raise ValueError("Moments takes exactly one of variance and covariance")
        self.register_buffer("mean", mean.double())
        if covariance is not None:
            if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
                raise ValueError(f"covariance must be a square matrix, got shape {tuple(covariance.shape)}")
            eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
            self.register_buffer("eigenvalues", eigenvalues.clamp_min(0.0))
            self.register_buffer("eigenvectors", eigenvectors)
        else:
            assert variance is not None
            if bool((variance < 0).any()):
                raise ValueError(f"variances must not be negative, got {float(variance.min())}")
            self.register_buffer("eigenvalues", variance.double())
            self.register_buffer("eigenvectors", None)
        values = vectors = None
        if largest is not None:
            values, vectors = torch.cat((largest[0].flatten(), largest[2].reshape(1))).double(), largest[1].double()
            if vectors.shape[1] != len(values) - 1 or bool((values < 0).any()):
                raise ValueError(f"largest must be variances (k,), axes (D, k) and a variance, got {[tuple(v.shape) for v in largest]}")
        self.register_buffer("axis_values", values)
        self.register_buffer("axis_vectors", vectors)

    @property
    def has_axes(self) -> bool:
        """Whether the principal axes are known. Each element's variance alone does not tell them, unless there are few elements, whose
        covariance would have been kept."""
        return self.eigenvectors is not None or self.axis_vectors is not None or self.eigenvalues.numel() <= MAX_COVARIANCE

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Moments:
        """The moments whose `state_dict` this is."""
        moments = cls(state["mean"], variance=state["eigenvalues"])
        for name in ("eigenvectors", "axis_values", "axis_vectors"):
            setattr(moments, name, state.get(name))
        return moments

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Moments:
        # They follow the model's device and stay float64 when its network is cast to a narrower dtype.
        def moved(value: Tensor) -> Tensor:
            other = fn(value)
            return value.to(other.device) if other.dtype != value.dtype else other

        return super()._apply(moved, recurse)

    @classmethod
    def fit(cls, data: Tensor) -> Moments:
        """The moments of `data` (N, *), already normalised.

        Up to 1,024 dimensions with at least twice as many items: the whole covariance. Else each element's variance and the largest
        principal axes, found by subspace iteration on a half of the items (Halko et al. 2011, arXiv:0909.4061); the variances along
        them are those of the other half, so that no axis looks larger than it is for having been chosen. ValueError for no data.
        """
        flat = data.flatten(1)
        count, dim = flat.shape
        if not count:
            raise ValueError("moments need at least one item")
        if dim <= MAX_COVARIANCE and (count >= 2 * dim or count < 16):
            flat = flat.double()
            mean = flat.mean(0)
            centred = flat - mean
            return cls(mean.reshape(data.shape[1:]), covariance=centred.T @ centred / count)
        flat = flat.double()
        mean, variance = flat.mean(0), flat.var(0, unbiased=False)
        shape = data.shape[1:]
        return cls(mean.reshape(shape), variance=variance.reshape(shape), largest=_largest_axes(flat, mean))

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x] of Gaussian data with these moments, m + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha m).

        It is the best linear denoiser of any data with these moments. `alpha`, `sigma` scalars; shape of `x`.
        """
        variances = self.along
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        return (self.mean + self.product(gain, x - alpha * self.mean)).to(x.dtype)

    def posterior_covariance(self, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Cov[x_0 | x_t] v of Gaussian data with these moments, sigma^2 C (alpha^2 C + sigma^2)^-1 v; alpha, sigma () or (B,), v and the
        result (B, *)."""
        variances = self.along
        alpha, sigma = (value.to(self.mean).reshape(*value.shape, *[1] * variances.ndim) for value in (alpha, sigma))
        return self.product(sigma**2 * variances / (alpha**2 * variances + sigma**2), v).to(v.dtype)

    def flow(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The probability flow of Gaussian data with these moments, exactly, from alpha[0], sigma[0] to alpha[1], sigma[1]:
        alpha m + ((alpha^2 C + sigma^2)/(alpha_t^2 C + sigma_t^2))^(1/2) (x - alpha_t m); shape of `x`."""
        alpha, sigma = alpha.to(self.mean), sigma.to(self.mean)
        variances = self.along
        before, after = ((alpha[i] ** 2 * variances + sigma[i] ** 2) for i in (0, 1))
        return (alpha[1] * self.mean + self.product(torch.sqrt(after / before), x - alpha[0] * self.mean)).to(x.dtype)

    def continued(self, x: Tensor, denoised: Tensor, alpha: Tensor, sigma: Tensor, ratios: Tensor) -> list[Tensor]:
        """E[x_0 | x] of such Gaussian data along the flow through x, at alpha/sigma = each of `ratios`, shifted by a constant
        so that it is `denoised` at x itself.

        In u = alpha/sigma it is m + C u (1 + C u^2)^(-1/2) c with c constant along the flow, an odd function about m that
        goes on smoothly through u = 0 (pure noise) to negative u.
        """
        alpha, sigma, ratios = (value.to(self.mean) for value in (alpha, sigma, ratios))
        variances = self.along
        here = alpha * variances / (alpha**2 * variances + sigma**2)
        constant = 1 / torch.sqrt(alpha**2 * variances + sigma**2)
        gains = [variances * u / torch.sqrt(1 + variances * u**2) * constant - here for u in ratios]
        centred = x - alpha * self.mean
        return [denoised + self.product(gain, centred).to(x.dtype) for gain in gains]

    def axes(self, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (D,), variances along the principal axes (D,) and these axes as columns (D, D), None where they are the elements',
        all for a flattened sample of this shape."""
        mean = self.mean.expand(shape).flatten()
        variances = self.eigenvalues if self.eigenvectors is not None else self.eigenvalues.expand(shape).flatten()
        return mean, variances, self.eigenvectors

    @property
    def along(self) -> Tensor:
        """What `product` takes a gain for: the variances along the axes that are known, and beyond the largest of them."""
        return self.eigenvalues if self.axis_values is None else self.axis_values

    def product(self, gain: Tensor, centred: Tensor) -> Tensor:
        """The matrix with these eigenvalues times `centred` (B, *), float64."""
        if self.axis_vectors is not None:
            flat = centred.double().flatten(1)
            along = ((flat @ self.axis_vectors) * (gain[..., :-1] - gain[..., -1:])) @ self.axis_vectors.T
            return (along + gain[..., -1:] * flat).reshape(centred.shape)
        if self.eigenvectors is None:
            return centred.double() * gain
        return (((centred.double().flatten(1) @ self.eigenvectors) * gain) @ self.eigenvectors.T).reshape(centred.shape)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The least and the largest variance along the principal axes, (), where the mean's device is."""
        variances = self.along
        return variances.min(), variances.max()

    def squares(self, off: Tensor) -> Tensor:
        """The mean square of differences `off` (B, *data shape) along each axis, of the shape of `along`."""
        flat = off.double().flatten(1)
        if self.axis_vectors is not None:
            dim, known = self.axis_vectors.shape
            each = (flat @ self.axis_vectors).square().mean(0)
            rest = (flat.square().sum(1).mean() - each.sum()).clamp_min(0.0) / max(1, dim - known)
            return torch.cat((each, rest.reshape(1)))
        if self.eigenvectors is not None:
            return (flat @ self.eigenvectors).square().mean(0)
        square = off.double().square().mean(0)
        # Where one number stands for many elements, their mean.
        return square if self.eigenvalues.shape == square.shape else square.mean().expand_as(self.eigenvalues)

    def spread(self) -> tuple[float, float]:
        """sqrt(sum s^4/sum s^2) and the root mean square of the standard deviations s along the principal axes: the spread
        of the directions that hold most of the variance, and of all."""
        variances, weights = self.along, None
        if self.axis_vectors is not None:
            dim, known = self.axis_vectors.shape
            weights = torch.cat((variances.new_ones(known), variances.new_tensor([dim - known]))) / dim
        mean = variances.mean() if weights is None else (weights * variances).sum()
        fourth = (variances**2).mean() if weights is None else (weights * variances**2).sum()
        return (float(torch.sqrt(fourth / mean)), float(torch.sqrt(mean))) if float(mean) > 0 else (1.0, 1.0)


def _largest_axes(flat: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances along the largest principal axes (k,), the axes (D, k), and the variance along every direction beside them."""
    count, dim = flat.shape
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(count, generator=generator)[:ITEMS].to(flat.device)
    found, judging = chosen[::2], chosen[1::2]
    axes = max(1, min(MOST_AXES, len(found) // 2, dim - 1, MOST_NUMBERS // dim))
    centred = flat[found] - mean
    vectors = torch.randn(dim, axes, dtype=flat.dtype, generator=generator).to(flat.device)
    for _ in range(ITERATIONS):
        vectors = torch.linalg.qr(centred.T @ (centred @ vectors)).Q
    _, _, rotation = torch.linalg.svd(centred @ vectors, full_matrices=False)
    vectors = vectors @ rotation.T
    judged = flat[judging] - mean
    along = (judged @ vectors).square().mean(0)
    # Of the same items: the total over all of them can be less than what the axes hold here, and the rest would be none.
    rest = (judged.square().sum(1).mean() - along.sum()).clamp_min(0.0) / (dim - axes)
    return along, vectors, rest
