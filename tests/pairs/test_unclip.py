"""The prior and the decoder against closed forms: correlated Gaussians, and pictures that are what their embedding says."""

import pytest
import torch
from torch.nn import functional as F

import sde_gen
from sde_gen.exact.mixtures import GaussianData
from sde_gen.models.denoiser import Denoiser, Prediction
from sde_gen.pairs import UnCLIP
from sde_gen.pairs.unclip import EMBEDDING, arc
from sde_gen.sdes.base import as_time
from sde_gen.training.pairs import ClipSettings, train_clip

DIMS = 8
CAPTIONS = ["red square", "green circle", "blue star", "a cat"]


@pytest.fixture(scope="module")
def clip():
    x = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    settings = ClipSettings(steps=2, batch=4, jitter=None)
    options = {"image_options": {"width": 8, "stages": 1, "depth": 1}, "text_options": {"width": 16, "depth": 1, "heads": 2}}
    return train_clip(x, CAPTIONS * 2, settings, dims=DIMS, progress=False, **options)


class Told(Denoiser):
    """Data that are one point, a function of a condition: exact for every state and time."""

    depends_on_state = False

    def __init__(self, name: str, of) -> None:
        super().__init__(sde_gen.make_sde("vp"), None, data_std=1.0)
        self.name, self.of = name, of

    def predict(self, x, t, **cond):
        as_time(t)
        return Prediction(self.of(cond[self.name]).to(x).reshape(x.shape))


@pytest.fixture
def whole(clip):
    prior = Told("caption", lambda caption: 3 * clip.embed_texts(caption).detach())
    decoder = Told(EMBEDDING, lambda e: e.sum(1)[:, None, None, None].expand(-1, 3, 8, 8))
    return UnCLIP(clip, prior, decoder, {"solver": "ddim", "steps": 3}, {"solver": "ddim", "steps": 3})


def test_a_caption_becomes_an_embedding_of_unit_length_and_that_a_picture(whole, clip):
    with torch.no_grad():
        expected = clip.embed_texts(CAPTIONS)
    found = whole.embeddings(CAPTIONS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    x = whole.draw(CAPTIONS)
    assert x.shape == (4, 3, 8, 8)
    torch.testing.assert_close(x[:, 0, 0, 0], expected.sum(1), atol=1e-3, rtol=0)


def test_the_best_of_several_embeddings_is_the_nearest_to_the_caption(clip):

    class Spread(Told):
        def __init__(self) -> None:
            super().__init__("caption", lambda c: c)
            self.law = GaussianData(torch.zeros(DIMS), torch.eye(DIMS)).model(self.sde)

        def predict(self, x, t, **cond):
            return self.law.predict(x, t)

    whole = UnCLIP(clip, Spread(), Spread())
    asked = CAPTIONS * 20
    text = clip.embed_texts(asked)
    near = [float((whole.embeddings(asked, best_of=n) * text).sum(1).mean()) for n in (1, 16)]
    assert near[0] == pytest.approx(0, abs=0.15)  # of a uniform law
    assert near[1] == pytest.approx(0.57, abs=0.08)  # the mean of the largest of 16


def test_variations_paths_and_changes_start_from_what_clip_sees(whole, clip):
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        seen = clip.embed_images(x)
        turn = F.normalize(clip.embed_texts(["a cat"])[0] - clip.embed_texts(["blue star"])[0], dim=0)
    variations = whole.variations(x, 3)
    assert variations.shape == (2, 3, 3, 8, 8)
    torch.testing.assert_close(variations[:, :, 0, 0, 0], seen.sum(1)[:, None].expand(-1, 3), atol=1e-3, rtol=0)
    path = whole.interpolated(x[:1], x[1:], 5)
    torch.testing.assert_close(path[[0, 4], 0, 0, 0, 0], seen.sum(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(path[2, 0, 0, 0, 0], arc(seen[:1], seen[1:], 0.5).sum(), atol=1e-3, rtol=0)
    changed = whole.changed(x, "blue star", "a cat", share=1.0)
    torch.testing.assert_close(changed[:, 0, 0, 0], turn.sum().expand(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.changed(x, "blue star", "a cat", share=0.0), variations[:, 0], atol=1e-3, rtol=0)


def test_an_arc_keeps_unit_length_and_goes_evenly():
    a, b = F.normalize(torch.randn(2, 5, DIMS, generator=torch.Generator().manual_seed(0)), dim=2)
    points = torch.stack([arc(a, b, k / 4) for k in range(5)])
    torch.testing.assert_close(points.norm(dim=2), torch.ones(5, 5))
    torch.testing.assert_close(points[[0, 4]], torch.stack((a, b)), atol=1e-5, rtol=0)
    steps = (points[1:] * points[:-1]).sum(2).clamp(max=1).arccos()
    torch.testing.assert_close(steps, steps.mean(0).expand(4, -1), atol=1e-3, rtol=0)


def test_bad_arguments_get_one_line(whole):
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="best_of must be a whole number of at least 1, got 0"):
        whole.embeddings(["a"], best_of=0)
    with pytest.raises(ValueError, match="say the same"):
        whole.changed(x, "a cat", "a cat")
    with pytest.raises(ValueError, match="a count of at least 2"):
        whole.interpolated(x, x, 1)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2"):
        whole.changed(x, "a cat", "blue star", share=2)
    with pytest.raises(ValueError, match="vectors 1 of a and b are opposite"):
        arc(torch.eye(4)[:2], torch.eye(4)[:2] * torch.tensor([[1.0], [-1.0]]), 0.5)


def test_a_picture_is_not_made_of_the_noise_of_its_embedding(clip):
    size = clip.image.options["dims"]
    prior = GaussianData(torch.zeros(size), torch.eye(size)).model(sde_gen.make_sde("vp"))
    decoder = GaussianData(torch.zeros(3, 8, 8), torch.eye(192)).model(sde_gen.make_sde("vp"))
    asks = {"solver": "ddim", "steps": 2}

    class Deaf(Denoiser):
        def __init__(self, law) -> None:
            super().__init__(law.sde, None, data_std=1.0)
            self.law = law

        def predict(self, x, t, **cond):
            return self.law.predict(x, t)

    whole = UnCLIP(clip, Deaf(prior), Deaf(decoder), asks, asks)
    captions = ["a cat"] * 400
    e = whole.embeddings(captions, seed=3, best_of=1)
    x = whole.pictures(e, seed=3).flatten(1)[:, :size]
    alike = torch.nn.functional.cosine_similarity(e, x)
    assert abs(float(alike.mean())) < 4 / (size * len(e)) ** 0.5  # of independent directions
