"""The data's mean and covariance: what they imply in closed form, and how a model is asked for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..randomness import NoiseStream

if TYPE_CHECKING:
    from .denoiser import Denoiser

MAX_COVARIANCE = 1024
"""Up to this many dimensions `Moments.fit` keeps the whole covariance; above it, each element's variance and the largest axes."""
MOST_AXES, MOST_NUMBERS = 128, 1 << 21
"""Largest number of principal axes that are kept where the whole covariance is not, and of the numbers in them."""
ITEMS, ITERATIONS = 4096, 3
"""Items of which the largest axes are found, and rounds of subspace iteration."""
SEED = 0x6D6F6D
LARGEST = 256
"""Up to this many dimensions the whole covariance is measured where a model has no moments; above it the largest axes."""
MEASURED_AXES, REACH = 8, 3.0
"""How many axes are measured above that, and how far from a draw of the noise, in its standard deviations."""
NOISY = 30.0
"""sigma/alpha in units of the data's standard deviation at which the score is asked: nearly Gaussian, not yet lost in rounding."""


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
        return cls(mean.reshape(shape), variance=variance.reshape(shape), largest=_largest_axes(flat, mean, variance))

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x] of Gaussian data with these moments, m + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha m).

        It is the best linear denoiser of any data with these moments. `alpha`, `sigma` scalars; shape of `x`.
        """
        variances = self._variances()
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        return (self.mean + self._product(gain, x - alpha * self.mean)).to(x.dtype)

    def flow(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The probability flow of Gaussian data with these moments, exactly, from alpha[0], sigma[0] to alpha[1], sigma[1]:
        alpha m + ((alpha^2 C + sigma^2)/(alpha_t^2 C + sigma_t^2))^(1/2) (x - alpha_t m); shape of `x`."""
        alpha, sigma = alpha.to(self.mean), sigma.to(self.mean)
        variances = self._variances()
        before, after = ((alpha[i] ** 2 * variances + sigma[i] ** 2) for i in (0, 1))
        return (alpha[1] * self.mean + self._product(torch.sqrt(after / before), x - alpha[0] * self.mean)).to(x.dtype)

    def continued(self, x: Tensor, denoised: Tensor, alpha: Tensor, sigma: Tensor, ratios: Tensor) -> list[Tensor]:
        """E[x_0 | x] of such Gaussian data along the flow through x, at alpha/sigma = each of `ratios`, shifted by a constant
        so that it is `denoised` at x itself.

        In u = alpha/sigma it is m + C u (1 + C u^2)^(-1/2) c with c constant along the flow, an odd function about m that
        goes on smoothly through u = 0 (pure noise) to negative u.
        """
        alpha, sigma, ratios = (value.to(self.mean) for value in (alpha, sigma, ratios))
        variances = self._variances()
        here = alpha * variances / (alpha**2 * variances + sigma**2)
        constant = 1 / torch.sqrt(alpha**2 * variances + sigma**2)
        gains = [variances * u / torch.sqrt(1 + variances * u**2) * constant - here for u in ratios]
        centred = x - alpha * self.mean
        return [denoised + self._product(gain, centred).to(x.dtype) for gain in gains]

    def axes(self, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (D,), variances along the principal axes (D,) and these axes as columns (D, D), None where they are the elements',
        all for a flattened sample of this shape."""
        mean = self.mean.expand(shape).flatten()
        variances = self.eigenvalues if self.eigenvectors is not None else self.eigenvalues.expand(shape).flatten()
        return mean, variances, self.eigenvectors

    def _variances(self) -> Tensor:
        """What `_product` takes a gain for: the variances along the axes that are known, and beyond the largest of them."""
        return self.eigenvalues if self.axis_values is None else self.axis_values

    def _product(self, gain: Tensor, centred: Tensor) -> Tensor:
        """The matrix with these eigenvalues times `centred` (B, *), float64."""
        if self.axis_vectors is not None:
            flat = centred.double().flatten(1)
            along = ((flat @ self.axis_vectors) * (gain[:-1] - gain[-1])) @ self.axis_vectors.T
            return (along + gain[-1] * flat).reshape(centred.shape)
        if self.eigenvectors is None:
            return centred.double() * gain
        return (((centred.double().flatten(1) @ self.eigenvectors) * gain) @ self.eigenvectors.T).reshape(centred.shape)

    def spread(self) -> tuple[float, float]:
        """sqrt(sum s^4/sum s^2) and the root mean square of the standard deviations s along the principal axes: the spread
        of the directions that hold most of the variance, and of all."""
        variances, weights = self._variances(), None
        if self.axis_vectors is not None:
            dim, known = self.axis_vectors.shape
            weights = torch.cat((variances.new_ones(known), variances.new_tensor([dim - known]))) / dim
        mean = variances.mean() if weights is None else (weights * variances).sum()
        fourth = (variances**2).mean() if weights is None else (weights * variances**2).sum()
        return (float(torch.sqrt(fourth / mean)), float(torch.sqrt(mean))) if float(mean) > 0 else (1.0, 1.0)


def _largest_axes(flat: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    along = ((flat[judging] - mean) @ vectors).square().mean(0)
    rest = (variance.sum() - along.sum()).clamp_min(0.0) / (dim - axes)
    return along, vectors, rest


def moments_of(model: Denoiser, x: Tensor) -> Moments | None:
    """The model's moments; where it has none, those measured from it for samples like `x`'s, once for its weights; None where predictions
    are not finite."""
    if model.moments is not None:
        return model.moments
    shape = tuple(x.shape[1:])
    # Other weights, in place or not, and another device are another model.
    weights = tuple((value.data_ptr(), value._version) for value in (*model.parameters(), *model.buffers()))
    known = model.measured.get(shape)
    if known is None or known[0] != weights:
        known = weights, measure_moments(model, shape, x.dtype, x.device)
        model.measured[shape] = known
    return known[1]


def measure_moments(
    model: Denoiser, shape: Sequence[int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Moments | None:
    """Mean and covariance of a model's data from the model itself, as its score near pure noise holds them.

        E[x_0 | x] = m + (alpha/sigma^2) C (x - alpha m) + O((alpha/sigma)^2)

    is fitted by least squares to the predictions at 2 (D + 1) random points where sigma/alpha is `NOISY` times the
    data's standard deviation. Above `LARGEST` dimensions the largest axes of C are found by subspace iteration on differences of
    predictions, and the variance beside them from random ones. None where these are not finite. Wang and Vastola 2024, arXiv:2412.09726.
    """
    if torch.Size(shape).numel() > LARGEST:
        return _measure_largest(model, shape, dtype, torch.device(device))
    sde = model.sde
    count = 2 * (int(torch.Size(shape).numel()) + 1)
    noise = NoiseStream(SEED, 0, count, shape, dtype, torch.device(device))
    spread = 1.0
    for _ in range(2):  # the second time at the level that the first one's spread asks for
        lowest, highest = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
        lambda_ = min(max(-math.log(NOISY * spread), lowest), highest)
        t = float(sde.time_of(lambda_))
        alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        half = noise.draw()[: count // 2]
        z = torch.cat((half, -half))  # in pairs, so that the mean is right to the second order
        with torch.no_grad():
            denoised = model.predict(z * sigma, t).denoised.double().flatten(1)
        if not bool(torch.isfinite(denoised).all()):
            return None
        z = z.double().flatten(1)
        mean = denoised.mean(0)
        odd = 0.5 * (denoised[: count // 2] - denoised[count // 2 :])
        slope = torch.linalg.lstsq(z[: count // 2].cpu(), odd.cpu()).solution.to(odd)
        covariance = (sigma / alpha) * 0.5 * (slope + slope.T)
        covariance = covariance + (alpha / sigma) ** 2 * covariance @ covariance  # the next order of C (1 + C u^2)^-1
        if not bool(torch.isfinite(covariance).all()):
            return None
        spread = float(covariance.diagonal().mean().clamp_min(1e-8).sqrt())
    return Moments(mean.reshape(tuple(shape)), covariance=covariance)


@torch.no_grad()
def _measure_largest(model: Denoiser, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Moments | None:
    dim, axes = int(torch.Size(shape).numel()), MEASURED_AXES
    noise = NoiseStream(SEED, 0, axes, shape, dtype, device)
    spread = 1.0
    for _ in range(2):  # the second time at the level that the first one's spread asks for
        level = _Noisy(model, shape, dtype, noise.draw().double().flatten(1), spread)
        vectors = torch.linalg.qr(noise.draw().double().flatten(1).T).Q
        for _ in range(ITERATIONS):
            vectors = torch.linalg.qr(level.covariance_times(vectors.T).T).Q
        inside = vectors.T @ level.covariance_times(vectors.T).T
        if not bool(torch.isfinite(inside).all()):
            return None
        values, rotation = torch.linalg.eigh(0.5 * (inside + inside.T))
        beside = noise.draw().double().flatten(1)
        beside = beside - beside @ vectors @ vectors.T
        rest = ((beside * level.covariance_times(beside)).sum(1).mean() / (dim - axes)).clamp_min(0.0)
        mean = level.predict(torch.cat((level.z, -level.z))).mean(0)
        if not bool(torch.isfinite(rest) and torch.isfinite(mean).all()):
            return None
        # What was measured is C (1 + C u^2)^-1 for Gaussian data.
        values = values.clamp_min(0.0) / (1 - (level.alpha / level.sigma) ** 2 * values).clamp_min(0.1)
        spread = float(torch.sqrt(values.max().clamp_min(1e-8)))
    vectors = vectors @ rotation
    variance = (vectors.square() @ (values - rest) + rest).clamp_min(0.0)
    return Moments(mean.reshape(tuple(shape)), variance=variance.reshape(tuple(shape)), largest=(values, vectors, rest))


class _Noisy:
    """A model where sigma/alpha is `NOISY` times `spread`, and draws z (K, D) of the noise there."""

    def __init__(self, model: Denoiser, shape: Sequence[int], dtype: torch.dtype, z: Tensor, spread: float) -> None:
        self.model, self.shape, self.dtype, self.z = model, shape, dtype, z
        lowest, highest = (float(model.sde.half_log_snr(t)) for t in (model.sde.t_max, model.sde.t_min))
        self.t = float(model.sde.time_of(min(max(-math.log(NOISY * spread), lowest), highest)))
        self.alpha, self.sigma = (float(value) for value in model.sde.marginal(torch.tensor(self.t, dtype=torch.float64)))

    def predict(self, z: Tensor) -> Tensor:
        """E[x_0 | x = sigma z], (n, D) like z."""
        return self.model.predict((self.sigma * z).to(self.dtype).reshape(-1, *self.shape), self.t).denoised.double().flatten(1)

    def covariance_times(self, directions: Tensor) -> Tensor:
        """C v for each row v of `directions` (K, D), from predictions on both sides of the draws."""
        size = float(REACH / directions.norm(dim=1).mean())
        above, below = self.predict(torch.cat((self.z + size * directions, self.z - size * directions))).chunk(2)
        return (self.sigma / self.alpha) * (above - below) / (2 * size)
