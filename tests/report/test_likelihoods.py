import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from sde_gen.discrete import Elbo
from sde_gen.metrics import Estimate
from sde_gen.report import likelihoods, plot_terms


def bound(steps: int, images: int = 100, each: int = 1, seed: int = 0) -> Elbo:
    """Terms of the density exp(lambda/2) bits for a unit of lambda, `each` image drawing every term of its own value 1 + deviation."""
    edges = torch.linspace(3.0, -3.0, steps, dtype=torch.float64)
    edges = torch.cat((edges[:1], edges[1:-1] + 0.2 * (edges[1] - edges[0]) * torch.rand(steps - 2), edges[-1:]))
    widths = edges[:-1] - edges[1:]
    terms = torch.cat((torch.tensor([0.03], dtype=torch.float64), widths * torch.exp((edges[1:] + edges[:-1]) / 4)))
    counts = torch.full((steps,), images // each)
    errors = 0.5 * terms / counts.sqrt()
    part = Estimate(float(terms[1:].sum()), 0.01)
    return Elbo(
        value=part.value,
        std_error=0.1,
        noise=math.nan,
        test_set=0.1,
        decoder=Estimate(0.03, 0.001),
        diffusion=part,
        prior=Estimate(1e-4, 1e-6),
        times=torch.linspace(0.01, 1, steps, dtype=torch.float64),
        terms=terms,
        term_errors=errors,
        edges=edges,
        counts=counts,
        each=torch.zeros(images),
        nfe=1,
        unit="bits/dim",
    )


@pytest.mark.parametrize("steps", [1000, 40])
def test_a_curve_keeps_the_density_and_its_area(steps: int) -> None:
    t, level, value, _, width = likelihoods._curve(bound(steps))
    assert len(t) == min(steps - 1, likelihoods.GROUPS)
    assert value / width == pytest.approx(torch.exp(torch.tensor(level) / 2).numpy(), rel=0.02)
    many = -(-(steps - 1) // len(t))
    assert float((value * many).sum()) == pytest.approx(bound(steps).diffusion.value, rel=0.05)


def test_the_errors_of_a_group_of_terms() -> None:
    # Every image drew every term: the terms of an image go together, and a mean of them is no better known than one.
    _, _, value, error, _ = likelihoods._curve(bound(1000, each=1))
    assert error / value == pytest.approx(0.05, rel=0.1)
    # Each image drew one term in ten of them: other terms, other images. 16 terms of 10 images each are 156 draws of 100 images.
    _, _, value, error, _ = likelihoods._curve(bound(1000, each=10))
    assert error / value == pytest.approx(0.5 / math.sqrt(100), rel=0.1)
    _, _, value, error, _ = likelihoods._curve(bound(1000, each=50))
    assert error / value == pytest.approx(0.5 / math.sqrt(2 * 15.6), rel=0.1)


def test_terms_that_no_image_drew_are_passed_over(tmp_path: Path) -> None:
    whole = bound(1000, images=40)
    seen = torch.arange(1000) % 3 == 0
    terms, errors = torch.where(seen, whole.terms, math.nan), torch.full((1000,), math.nan)
    some = replace(whole, terms=terms, term_errors=errors, counts=seen.long())
    _, level, value, error, width = likelihoods._curve(some)
    assert value / width == pytest.approx(torch.exp(torch.tensor(level) / 2).numpy(), rel=0.05) and bool((error != error).all())
    path = plot_terms({"chain": some}, tmp_path / "terms.png")
    assert min(Image.open(path).size) > 100


def test_the_picture(tmp_path: Path) -> None:
    path = plot_terms({"chain of 1000 steps": bound(1000), "chain of 50 steps": bound(50)}, tmp_path / "terms.png", bound(65))
    assert path.stat().st_size < 300_000 and min(Image.open(path).size) > 300
    figure = likelihoods.terms_figure({"chain of 1000 steps": bound(1000), "chain of 50 steps": bound(50)}, bound(65))
    left, right = figure.axes
    points = {handle.get_label(): handle.lines[0].get_color() for handle in left.containers}
    assert len(points) == 2 and set(points.values()) == {"black"}  # of both chains, so of the colour of neither
    chains = {line.get_label().split(":")[0]: line.get_color() for line in right.lines}
    assert len(set(chains.values())) == 3 and [line.get_color() for line in left.lines][:2] == list(chains.values())[:2]
    alone = replace(bound(2), prior=Estimate(0.0, math.nan))
    plot_terms({"one step": alone}, tmp_path / "one.png")
    with pytest.raises(ValueError, match="at least 2 steps are needed, got \\[\\]"):
        plot_terms({}, tmp_path / "none.png")
