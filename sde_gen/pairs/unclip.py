"""From a caption to a picture by way of CLIP's image embedding: a prior and a decoder (DALL-E 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.captions import CAPTION, text_tensor
from ..models.denoiser import Denoiser
from ..sampling.sample import sample
from .clip import CLIP

_OF_PRIOR = 1 << 31
"""Where the numbers of the prior's samples begin, so that no picture is made of the noise that its embedding is made of."""
EMBEDDING = "embedding"
"""The condition under which the decoder is given an image embedding."""


@dataclass
class UnCLIP:
    """p(x | caption) = p(x | e) p(e | caption), e the image embedding of a CLIP (Ramesh et al. 2022, arXiv:2204.06125).

    clip: of pictures without noise.
    prior: a Denoiser of embeddings, (dims,), with the condition "caption". What it draws is brought to unit length. None: what starts from
        pictures works alone.
    decoder: a Denoiser of pictures with the condition "embedding"; guided or not, with other conditions or none.
    of_prior, of_decoder: how the two are sampled, arguments of `sample` (solver, steps, ...).
    """

    clip: CLIP
    prior: Denoiser | None
    decoder: Denoiser
    of_prior: Mapping[str, Any] = field(default_factory=lambda: {"solver": "dpm", "steps": 20})
    of_decoder: Mapping[str, Any] = field(default_factory=lambda: {"solver": "dpm", "steps": 20})

    def embeddings(self, captions: Sequence[str], seed: int = 0, best_of: int = 2) -> Tensor:
        """An image embedding for each caption, (N, dims), of unit length.

        best_of: so many are drawn for each, of which the one nearest to the caption is kept (section 2.2). 1: a sample of the prior.
        """
        if isinstance(best_of, bool) or not isinstance(best_of, int) or best_of < 1:
            raise ValueError(f"best_of must be a whole number of at least 1, got {best_of!r}")
        if self.prior is None:
            raise ValueError("captions need a prior: UnCLIP(clip, prior, decoder)")
        asked = text_tensor([caption for caption in captions for _ in range(best_of)])
        dims = self.clip.image.options["dims"]
        how = {"index_offset": _OF_PRIOR, **self.of_prior}
        drawn = sample(self.prior, (len(asked), dims), seed=seed, cond={CAPTION: asked}, progress=False, **how).x
        drawn = F.normalize(drawn.float(), dim=1).reshape(len(captions), best_of, dims)
        if best_of == 1:
            return drawn[:, 0]
        with torch.no_grad():
            near = (drawn @ self.clip.embed_texts(list(captions)).to(drawn)[:, :, None])[:, :, 0].argmax(1)
        return drawn[torch.arange(len(drawn), device=drawn.device), near]

    def pictures(self, embeddings: Tensor, seed: int = 0, cond: Mapping[str, Any] | None = None, **options: Any) -> Tensor:
        """Pictures (N, C, *spatial) in the data's own units of embeddings (N, dims); `cond`: the decoder's other conditions."""
        shape = (len(embeddings), *self.clip.image.shape)
        given = {EMBEDDING: embeddings, **(cond or {})}
        return sample(self.decoder, shape, seed=seed, cond=given, progress=False, **{**self.of_decoder, **options}).x

    def draw(self, captions: Sequence[str], seed: int = 0, best_of: int = 2, **options: Any) -> Tensor:
        """A picture of each caption, (N, C, *spatial), in the data's own units."""
        return self.pictures(self.embeddings(captions, seed, best_of), seed, **options)

    def variations(self, x: Tensor, count: int, seed: int = 0, **options: Any) -> Tensor:
        """`count` pictures of what CLIP sees in each x (N, C, *spatial): (N, count, C, *spatial) (section 3.1)."""
        e = self._seen(x).repeat_interleave(count, 0)
        return self.pictures(e, seed, **options).unflatten(0, (len(x), count))

    def interpolated(self, a: Tensor, b: Tensor, count: int, seed: int = 0, **options: Any) -> Tensor:
        """`count` pictures from each of a to each of b (N, C, *spatial), on the arc between their embeddings and with one noise for all:
        (count, N, C, *spatial) (section 3.2)."""
        if a.shape != b.shape or isinstance(count, bool) or not isinstance(count, int) or count < 2:
            raise ValueError(
                f"a and b of one shape and a count of at least 2 are needed, got {tuple(a.shape)}, {tuple(b.shape)}, {count!r}"
            )
        shares = torch.linspace(0, 1, count).tolist()
        path = [arc(self._seen(a), self._seen(b), share) for share in shares]
        return torch.stack([self.pictures(e, seed, **options) for e in path])  # the same noise for every share

    def changed(self, x: Tensor, before: str, after: str, share: float = 0.3, seed: int = 0, **options: Any) -> Tensor:
        """Pictures x (N, C, *spatial) with what differs between two captions put into their embeddings: e is turned by `share` of the way
        towards the direction of text(after) - text(before) (section 3.3); 0 is a variation of x."""
        with torch.no_grad():
            first, last = self.clip.embed_texts([before, after])
        if torch.equal(first, last):
            raise ValueError(f"the captions {before!r} and {after!r} say the same to this CLIP")
        e = self._seen(x)
        return self.pictures(arc(e, F.normalize(last - first, dim=0).expand_as(e), share), seed, **options)

    @torch.no_grad()
    def _seen(self, x: Tensor) -> Tensor:
        return self.clip.embed_images(x).float()


def arc(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` in [0, 1] of the arc from a to b, vectors (N, D) of unit length. ValueError where they are opposite, which no
    one arc joins."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share!r}")
    cosine = (a * b).sum(1, keepdim=True)
    if bool((cosine < -1 + 1e-6).any()):
        raise ValueError(f"vectors {int(cosine.argmin())} of a and b are opposite: no one arc joins them")
    angle = torch.arccos(cosine.clamp(max=1 - 1e-6))
    return F.normalize((torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle), dim=1)
