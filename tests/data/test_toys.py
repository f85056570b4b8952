"""The data sets whose law under a condition is known: drawn from it, and what says it is right."""

from __future__ import annotations

import math

import pytest
import torch

from sde_gen.data import load_dataset
from sde_gen.data.toy_measurements import chirp_spectrogram, volume_spectrum
from sde_gen.data.toys import block_means, fine_law, response_law


def test_responses_are_normal_about_what_their_dose_and_age_say() -> None:
    data = load_dataset("regression", seed=2)
    assert data.train.shape == (20_000, 1) and set(data.cond) == set(data.test_cond) == {"dose", "age"} and data.test is not None
    for x, cond in ((data.train, data.cond), (data.test, data.test_cond)):
        mean, std = response_law(cond["dose"], cond["age"])
        z = (x[:, 0].double() - mean) / std
        assert abs(float(z.mean())) < 4 / math.sqrt(len(z)) and abs(float(z.std()) - 1) < 4 / math.sqrt(2 * len(z))
        assert abs(float(z.pow(4).mean()) - 3) < 4 * math.sqrt(96 / len(z)), "normal, not heavier"
        wide = cond["dose"] > 5
        assert abs(float(z[wide].std()) - 1) < 0.1 and abs(float(z[~wide].std()) - 1) < 0.1, "whatever the dose"
    dose, age = data.cond["dose"], data.cond["age"]
    assert 0 <= float(dose.min()) < 0.1 and 9.9 < float(dose.max()) <= 10 and float(age.min()) >= 20 and float(age.max()) <= 80
    assert not torch.equal(data.train, load_dataset("regression", seed=3).train)


def test_the_law_of_a_response() -> None:
    mean, std = response_law(torch.tensor([math.pi / 2, 0.0]), torch.tensor([40.0, 70.0]))
    torch.testing.assert_close(mean, torch.tensor([58.0, 50.0]))
    torch.testing.assert_close(std, torch.tensor([1 + 0.15 * math.pi, 1.0]))


def test_fields_are_stationary_and_their_block_means_are_the_condition() -> None:
    data = load_dataset("downscale", seed=2)
    x = data.train.double()
    assert x.shape == (20_000, 1, 16, 16) and data.test_cond["coarse"].shape == (2_000, 1, 4, 4)
    torch.testing.assert_close(block_means(data.train), data.cond["coarse"])
    torch.testing.assert_close(block_means(x)[:5, 0, 1, 2], x[:5, 0, 4:8, 8:12].mean((1, 2)))
    assert float((x.mean(0) - 15).abs().max()) < 0.2 and float((x.std(0) - 4).abs().max()) < 0.15
    for step in (1, 3, 7):  # along either axis
        r = math.sqrt(3) * step / 3
        for a, b in ((x[:, :, step:], x[:, :, :-step]), (x[..., step:], x[..., :-step])):
            assert float(((a - 15) * (b - 15)).mean()) == pytest.approx(16 * (1 + r) * math.exp(-r), abs=0.25)


def test_the_law_of_a_fine_field_is_that_of_gaussians_told_their_block_means() -> None:
    data = load_dataset("downscale", seed=2)
    mean, covariance = fine_law(data.cond["coarse"])
    torch.testing.assert_close(block_means(mean).float(), data.cond["coarse"], rtol=0, atol=1e-4)
    values = torch.linalg.eigvalsh(covariance)
    assert float(values[:16].abs().max()) < 1e-10 < float(values[16]), "nothing is left of the 16 means"
    off = (data.train.double() - mean).flatten(1)
    found, count = off.T @ off / len(off), len(off)
    expected_error = math.sqrt((1 + float(covariance.trace() ** 2 / covariance.square().sum())) / count)
    assert float((found - covariance).norm() / covariance.norm()) == pytest.approx(expected_error, rel=0.15)
    coarse = data.cond["coarse"].double().flatten(1)
    cross = off.T @ (coarse - coarse.mean(0)) / count
    assert float(cross.abs().max()) < 6 * float(off.std()) * float(coarse.std()) / math.sqrt(count), "the rest is independent of them"


@pytest.mark.parametrize("name", ["regression", "downscale"])
def test_a_limit_takes_the_conditions_along(name: str) -> None:
    whole, part = load_dataset(name), load_dataset(name, limit=50)
    row = int((whole.train == part.train[7]).flatten(1).all(1).nonzero()[0])
    for key, value in part.cond.items():
        assert len(value) == 50 and torch.equal(value[7], whole.cond[key][row])


def test_spectrograms_are_what_a_gaussian_window_gives_of_chirps() -> None:
    """Against a short-time Fourier transform of the sound itself: a chirp and its overtone, both far from the ends."""
    begin, end, decay = (torch.tensor([value], dtype=torch.float64) for value in (20.0, 44.0, 18.0))
    shown = chirp_spectrogram(begin, end, decay)[0, 0]
    # 256 frames, 64 samples apart, of 128 bins of 1/512 cycles a sample: a bin is 1/512, and a window e^{-t^2/(2 s^2)} gives power
    # e^{-(2 pi s f)^2} at the frequency f off the line, so that w bins are 1/(2 pi s) cycles a sample; the chirp is slow beside it.
    width = 512 / (2 * math.pi * 3)
    hop, frames = 64, 256
    t = torch.arange(hop * (frames - 1) + 1, dtype=torch.float64)
    rate = (end - begin) / 512 / (hop * (frames - 1))
    phase = 2 * math.pi * (begin / 512 * t + rate * t**2 / 2)
    level = 10 ** (-decay * t / t[-1] / 20)
    sound = level * (phase.cos() + 10 ** (-15 / 20) * (2 * phase).cos())
    offsets = torch.arange(-256, 256, dtype=torch.float64)
    window = torch.exp(-(offsets**2) / (2 * width**2))
    for frame in (40, 128, 220):
        piece = sound[frame * hop - 256 : frame * hop + 256] * window
        power = torch.fft.rfft(piece).abs()[:128] ** 2 / (window.sum() / 2) ** 2
        found = 10 * power.clamp_min(1e-8).log10()
        near = shown[:, frame] > -40
        assert float((found - shown[:, frame])[near].abs().max()) < 1.0, frame
    assert float(shown.min()) == -80 and float(shown.max()) < 0.1
    data = load_dataset("spectrograms")
    assert data.shape == (1, 128, 256) and data.test is not None and len(data.test) == 200


def test_volumes_have_the_spectrum_that_they_say() -> None:
    data = load_dataset("volumes", seed=3)
    assert data.shape == (1, 12, 12, 12)
    centred = data.train[:, 0].double() - 1000
    power = torch.fft.fftn(centred, dim=(-3, -2, -1), norm="ortho").abs().square().mean(0)
    spectrum = volume_spectrum()
    assert float(spectrum.mean()) == pytest.approx(150**2) and float(centred.square().mean().sqrt()) == pytest.approx(150, rel=0.01)
    assert float(((power / spectrum) - 1).abs().max()) < 6 * math.sqrt(2 / len(centred)), "at every frequency"
    slope = spectrum[0, 0, 0] / spectrum[0, 0, 3]  # a wave of 4 voxels
    assert float(slope) == pytest.approx((1 + (2 * math.pi * 2 / 4) ** 2) ** 2)


def test_volumes_are_correlated_as_exponentials_of_the_distance() -> None:
    """Where the grid is fine and the ends are far, the spectrum (1 + (2 pi l k)^2)^{-2} in three dimensions is that of e^{-r/l}."""
    length, fine, edge = 2.0, 0.5, 64
    k = torch.fft.fftfreq(edge, fine, dtype=torch.float64)
    square = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    covariance = torch.fft.ifftn((1 + (2 * math.pi * length) ** 2 * square) ** -2).real
    for r in (2.0, 4.0):
        found = float(covariance[0, 0, int((r + 1) / fine)] / covariance[0, 0, int(r / fine)])
        assert found == pytest.approx(math.exp(-1 / length), rel=0.03)
