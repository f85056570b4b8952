"""Our models in other libraries' samplers, judged by the exact flow of Gaussian data; skipped where a library is not installed."""

import builtins
from typing import Any

import pytest
import torch
from peers import peer

import sde_gen
from sde_gen.external import as_azula, as_deepinv, as_kdiffusion

SHAPE = (3, 4, 4)


class Gaussian(sde_gen.Denoiser):
    """E[x_0 | x_t] of Gaussian data with a correlated covariance, exactly; `shift` moves its mean."""

    def __init__(self, sde: sde_gen.SDE, normalizer: Any = None) -> None:
        generator = torch.Generator().manual_seed(0)
        axes = torch.linalg.qr(torch.randn(48, 48, generator=generator, dtype=torch.float64)).Q
        covariance = axes @ torch.diag(torch.linspace(0.05, 1.0, 48, dtype=torch.float64)) @ axes.T
        super().__init__(sde, normalizer, sde_gen.Moments(0.3 * torch.ones(SHAPE), covariance=covariance), 1.0)

    def predict(self, x: torch.Tensor, t: Any, shift: torch.Tensor | None = None) -> sde_gen.Prediction:
        alpha, sigma = self._marginal(x, t)
        rows = [
            self.moments.denoise(row[None] - a * (0 if shift is None else shift[k]), a, s) + (0 if shift is None else shift[k])
            for k, (row, a, s) in enumerate(zip(x, alpha.expand(len(x), 1, 1, 1), sigma.expand(len(x), 1, 1, 1), strict=True))
        ]
        return sde_gen.Prediction(torch.cat(rows).to(x.dtype))


def exact(model: Gaussian, x: torch.Tensor, first: float, last: float) -> torch.Tensor:
    """The flow of Gaussian data in the units of x_0 + sigma eps."""
    return model.moments.flow(x, torch.ones(2, dtype=torch.float64), torch.tensor([first, last], dtype=torch.float64))


PROCESSES = [sde_gen.make_sde("vp"), sde_gen.make_sde("ve", sigma_max=60.0), sde_gen.make_sde("ddpm"), sde_gen.make_sde("subvp")]
processes = pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)


@processes
def test_sigmas(sde: sde_gen.SDE) -> None:
    model = Gaussian(sde)
    denoiser = as_kdiffusion(model)
    x = 2 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.7, 20.0], dtype=torch.float64)
    wanted = torch.cat([model.moments.denoise(x[k : k + 1], 1.0, float(sigma[k])) for k in range(3)])
    torch.testing.assert_close(denoiser(x, sigma), wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(denoiser(x[:1], 0.02), wanted[:1], rtol=1e-6, atol=1e-7)
    shift = torch.ones(3, *SHAPE, dtype=torch.float64)
    assert not torch.allclose(denoiser(x, sigma, shift=shift), wanted)
    for bad in (1e-5, 1e5, float("nan")):
        with pytest.raises(ValueError, match="sigma must be in"):
            denoiser(x, torch.full((3,), bad))
    with pytest.raises(TypeError, match="a Denoiser such as ScoreModel is needed, got Linear"):
        as_kdiffusion(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@processes
def test_kdiffusion(sde: sde_gen.SDE) -> None:
    sampling = peer("k_diffusion.sampling")
    model = Gaussian(sde)
    denoiser = as_kdiffusion(model)
    first, last = 0.9 * denoiser.sigma_max, 1.2 * denoiser.sigma_min
    x = first * torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    errors = []
    for steps in (30, 60):
        sigmas = sampling.get_sigmas_karras(steps, last, first)[:-1].double()
        found = sampling.sample_heun(denoiser, x, sigmas, disable=True)
        errors.append(float((found - exact(model, x, first, float(sigmas[-1]))).abs().max()))
    assert errors[1] < 0.02 and errors[1] < 0.5 * errors[0]


@processes
def test_azula(sde: sde_gen.SDE) -> None:
    sample = peer("azula.sample")
    model = Gaussian(sde)
    adapted = as_azula(model)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    alpha, sigma = adapted.schedule(torch.tensor(1.0, dtype=torch.float64))
    assert float(torch.log(alpha / sigma)) == pytest.approx(float(sde.half_log_snr(sde.t_max)), rel=1e-9)
    ours = model.moments.flow(
        sigma * x, *(torch.stack(v) for v in zip((alpha, sigma), adapted.schedule(torch.tensor(0.0).double()), strict=True))
    )
    errors = []
    for steps in (64, 128):
        found = sample.DDIMSampler(adapted, steps=steps, silent=True, dtype=torch.float64)(sigma * x)
        errors.append(float((found - ours).abs().max()))
    assert errors[1] < 0.15 and errors[1] < 0.7 * errors[0]
    shift = torch.ones(3, *SHAPE, dtype=torch.float64)
    moved = adapted(x, torch.tensor(0.5, dtype=torch.float64), shift=shift).mean
    assert not torch.allclose(moved, adapted(x, torch.tensor(0.5, dtype=torch.float64)).mean)


@processes
def test_deepinv(sde: sde_gen.SDE) -> None:
    peer("deepinv")
    normalizer = sde_gen.Normalizer(torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 60.0))
    model = Gaussian(sde, normalizer)
    denoiser = as_deepinv(model)
    pictures = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for sigma in (0.1, torch.tensor([0.1, 0.1], dtype=torch.float64), torch.tensor(0.1)):
        wanted = model.moments.denoise((255 * pictures - 100) / 60, 1.0, 0.1 * 255 / 60)
        torch.testing.assert_close(denoiser(pictures, sigma), (100 + 60 * wanted) / 255, rtol=1e-4, atol=1e-5)


def test_channels_of_different_scales_are_refused_by_deepinv() -> None:
    normalizer = sde_gen.Normalizer(torch.zeros(3, 1, 1), torch.tensor([1.0, 2.0, 1.0])[:, None, None])
    with pytest.raises(ValueError, match="one scale for all channels"):
        as_deepinv(Gaussian(PROCESSES[0], normalizer))


@pytest.mark.parametrize(("adapt", "package"), [(as_azula, "azula"), (as_deepinv, "deepinv")])
def test_the_absence_of_a_library_is_said(adapt: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=f"needs the package {package}: pip install {package}"):
        adapt(Gaussian(PROCESSES[0]))
