"""The towers and CLIP around them: shapes of data, noise levels, texts, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import sde_gen
from sde_gen.data import Normalizer
from sde_gen.data.captions import text_tensor
from sde_gen.guidance import Classifier
from sde_gen.pairs import CLIP, ImageTower, TextTower
from sde_gen.pairs.augment import Jitter, may_be_mirrored, shorter
from sde_gen.pairs.towers import MOST_LEVEL

WORDS = ["a", "red", "green", "square", "circle"]
VP = sde_gen.make_sde("vp")


def clip(sde: sde_gen.SDE | None = None, shape: tuple[int, ...] = (3, 9, 12)) -> CLIP:
    torch.manual_seed(0)
    image = ImageTower(shape, dims=12, width=8, stages=2, depth=2, noisy=sde is not None)
    units = Normalizer(torch.full((shape[0], *[1] * (len(shape) - 1)), 100.0), torch.full((shape[0], *[1] * (len(shape) - 1)), 50.0))
    return CLIP(image, TextTower(12, WORDS, width=16, length=8), units, sde, 0.9).eval()


def images(count: int, shape: tuple[int, ...] = (3, 9, 12)) -> torch.Tensor:
    return 100 + 50 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 30), (2, 5, 6, 7)])
def test_embeddings_are_of_unit_length(shape: tuple[int, ...]) -> None:
    model = clip(shape=shape)
    found = model.embed_images(images(4, shape)), model.embed_texts(["a red square", "green", "circle ❤", "xyz"])
    for one in found:
        assert one.shape == (4, 12)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(4))
    shares = model.classify(images(4, shape), ["a red square", "green"])
    torch.testing.assert_close(shares, (found[0] @ found[1][:2].T / 0.07).softmax(1))


def test_texts_are_strings_or_tensors_of_them() -> None:
    model, texts = clip(), ["a red square", "green circle"]
    first = model.embed_texts(texts)
    torch.testing.assert_close(model.embed_texts(text_tensor(texts)), first)
    torch.testing.assert_close(model.embed_texts(model.numbers(texts)), first)
    torch.testing.assert_close(model.embed_texts([texts[0], "a " * 8])[:1], first[:1])  # pads are not attended to
    with pytest.raises(ValueError, match=r"text 1 has no words, ' \.'; a caption is needed"):
        model.embed_texts(["red", " ."])
    with pytest.raises(TypeError, match="texts must be a list of strings or a tensor of them, got str"):
        model.embed_texts("red")


def test_a_noisy_clip_is_told_the_level_and_sees_states_at_unit_variance() -> None:
    model = clip(VP)
    z = model.normalizer.encode(images(6)).float()
    seen: list[Any] = []
    model.image.register_forward_hook(lambda module, args, out: seen.append(args))
    for t in (VP.t_min, 0.3, 0.9):
        alpha, sigma = VP.marginal(torch.tensor(t, dtype=torch.float64))
        states = 0.9 * alpha.float() * z + sigma.float() * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
        model.embed_states(states, t)
        x, level = seen[-1]
        assert float(x.detach().std()) == pytest.approx(1, rel=0.05)
        assert level.tolist() == pytest.approx([float(VP.half_log_snr(t))] * 6)
    times = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    each = model.embed_states(z, times)
    torch.testing.assert_close(each[3:4], model.embed_states(z[3:4], 0.6), rtol=0, atol=1e-5)
    assert float((each[:1] - model.embed_states(z[:1], 0.9)).detach().abs().max()) > 1e-3
    seen.clear()
    model.embed_images(images(2))
    assert seen[0][1:] in ((), (None,)) and model.image.options["noisy"] and float(VP.half_log_snr(0.01)) < MOST_LEVEL


def test_it_is_a_log_probability_for_guidance() -> None:
    """scale image . text, with a gradient, under a Classifier; strings go in as the condition."""
    model = clip(VP, (1, 8, 8))
    data = sde_gen.exact.mixtures.GaussianData(torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64))

    def network(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return data.denoise_at(x.flatten(1), VP, c).reshape(x.shape)

    texts = ["red square", "green circle", "a"]
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    value = model(x, 0.4, texts)
    expected = (model.embed_states(x, 0.4) * model.embed_texts(texts)).sum(1) / 0.07
    torch.testing.assert_close(value, expected)
    guided = Classifier(sde_gen.ScoreModel(network, VP, "data"), model, strength=2.0)
    cond = {"caption": texts}
    out = sde_gen.sample(guided, (3, 1, 8, 8), "ddim", steps=3, cond=cond, progress=False)
    plain = sde_gen.sample(Classifier(guided.model, model, strength=0.0), (3, 1, 8, 8), "ddim", steps=3, cond=cond, progress=False)
    assert bool(out.x.isfinite().all()) and float((out.x - plain.x).abs().max()) > 1e-3
    for wrong, message in (
        ({}, "is asked for condition 'caption', and was given none"),
        ({"caption": ["red", "", "a"]}, "text 1 has no words"),
    ):
        with pytest.raises(ValueError, match=message):
            sde_gen.sample(guided, (3, 1, 8, 8), "ddim", steps=3, cond=wrong, progress=False)
    x.requires_grad_()
    gradient = torch.autograd.grad(model(x, 0.4, texts).sum(), x)[0]
    step = 1e-2 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        rise = model(x + step, 0.4, texts) - model(x - step, 0.4, texts)
    torch.testing.assert_close(rise / 2e-2, gradient.flatten(1).norm(dim=1), rtol=0.02, atol=1e-3)


def test_what_does_not_go_together_is_one_line() -> None:
    with pytest.raises(ValueError, match="an sde and a tower that is told the noise level"):
        CLIP(ImageTower((1, 8, 8), noisy=True), TextTower(128, WORDS), Normalizer(torch.zeros(1, 1, 1), torch.ones(1, 1, 1)))
    with pytest.raises(ValueError, match="this CLIP has seen pictures without noise alone: train_clip"):
        clip().embed_states(torch.zeros(1, 3, 9, 12), 0.5)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3, 9, 12\), got \(1, 3, 8, 8\)"):
        clip().embed_images(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="width must be an integer of at least 1, got 0"):
        ImageTower((1, 8, 8), width=0)
    with pytest.raises(ValueError, match=r"one to three spatial dimensions, got \(5,\)"):
        ImageTower((5,))


def test_jitter_moves_and_keeps_the_rim() -> None:
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, 6:10, 4:8] = 1.0
    torch.manual_seed(0)
    still = Jitter(0, 0, 0)(x)
    torch.testing.assert_close(still, x, rtol=0, atol=1e-5)
    moved = Jitter(0.1, 0, 0)(x)
    place = (moved * torch.arange(16.0)).sum((1, 2, 3)) / moved.sum((1, 2, 3)) - 5.5
    assert float(place.abs().max()) <= 1.61 and float(place.abs().max()) > 1.4 and abs(float(place.mean())) < 0.3
    turned = Jitter(0, 0, 0)(x, torch.tensor([True, False]).repeat(100))
    side = (turned * torch.arange(16.0)).sum((1, 2, 3)) / 16
    assert set(side[1::2].round(decimals=2).tolist()) == {5.5} and set(side[::2].round(decimals=2).tolist()) == {5.5, 9.5}
    white = Jitter()(torch.full((8, 3, 16, 16), 255.0))
    torch.testing.assert_close(white, torch.full_like(white, 255.0))
    sizes = Jitter(0, 0.3, 0)(x).sum((1, 2, 3))
    assert 16 * 0.7**2 * 0.9 < float(sizes.min()) < 11 and 22 < float(sizes.max()) < 16 * 1.3**2 * 1.1


def test_captions_in_fewer_words() -> None:
    found = shorter("owl, bird, night, wise, in the style of noto", 6)
    assert found[:2] == ["owl, bird, night, wise, in the style of noto", "owl, in the style of noto"] and len(found) == 6
    for one in found:
        first, *some, last = one.split(", ")
        assert first == "owl" and last == "in the style of noto" and set(some) <= {"bird", "night", "wise"} and len(set(some)) == len(some)
    assert found == shorter("owl, bird, night, wise, in the style of noto", 6) and len(set(found)) > 3
    assert shorter("owl", 3) == ["owl"] * 3 and shorter("owl", 1) == ["owl"]
    assert may_be_mirrored("green heart, love") and not may_be_mirrored("Left arrow") and not may_be_mirrored("twelve o'clock")


def test_the_scale_begins_as_the_paper_says() -> None:
    assert float(clip().log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
