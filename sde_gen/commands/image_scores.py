"""Figures that compare beyond one data set: samples and data in the features of a network that is the same for everybody.

    images as 8-bit pictures -> ImageFeatures -> Frechet and kernel distance to a Reference, Inception Score -> numbers and lines

The classifier of a data set's own labels is elsewhere (`sample_metrics.SampleMetrics`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .. import metrics, parallel
from ..data import Dataset, rows_drawn
from ..data.write import DataDescription
from ..external import load_features
from ..external.feature_networks import LABELS, features_named
from ..metrics.image_features import check_images
from ..report.files import atomic_path
from ..unknown_numbers import shown_estimate
from .config import ConfigError

LEAST = 20
"""Items below which no distance is taken."""
MOST_KERNEL = 10_000
"""Items of either side that a kernel distance is made of, drawn where there are more: it costs the square of them."""
PARTS, PART = 10, 20
"""Parts of an Inception Score as papers print it, of so many images at least."""
PROBED = 8
"""Images on which the cost of features is measured."""
CALLED = {metrics.Inception.distance: "fid", metrics.ImageNet.distance: "imagenet_distance"}
"""What a Frechet distance is called, and its key in files."""
FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """What images are compared with: moments of all of its features, `features` of some of its items (None of a file of moments), and
    in words what it is."""

    moments: metrics.Moments
    features: Tensor | None
    what: str


def as_pictures(description: DataDescription, x: Tensor) -> Tensor:
    """uint8 images of items (N, C, H, W) in the data's own units: what `sde-gen sample` writes as PNG."""
    values = description.finish(x, "png")[0]
    if values.dtype == np.uint16:
        values = np.rint(values / 257)
    return torch.from_numpy((values * 255 if values.dtype == bool else values).astype(np.uint8))


def network_of(text: str, device: torch.device | str = "cpu") -> metrics.ImageFeatures:
    """The network that a setting names; ConfigError, one line, where there is none."""
    try:
        return load_features(text).to(device)
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error


def check_reference(network: metrics.ImageFeatures, moments: metrics.Moments) -> metrics.Moments:
    """ConfigError for moments of other features."""
    if moments.width != network.width:
        raise ConfigError(f"{moments.source} holds moments of {moments.width} features, {network.name} has {network.width}")
    return moments


def read_moments(network: metrics.ImageFeatures, path: str | Path) -> Reference:
    """The reference in an .npz file of moments. ConfigError where there is none that suits the network."""
    try:
        moments = check_reference(network, metrics.Moments.read(path))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Reference(moments, None, f"the moments in {path}")


def reference_of(features: Tensor, what: str, seed: int = 0) -> Reference:
    """Features (N, D) as a reference."""
    return Reference(metrics.Moments.of(features, what), features[rows_drawn(len(features), MOST_KERNEL, seed)], what)


def scores_of(network: metrics.ImageFeatures, features: Tensor, reference: Reference, seed: int = 0) -> dict[str, Any]:
    """All that is measured of images with these features (N, D), by name; each number with its standard error."""
    found = metrics.frechet_to(features, reference.moments, seed=seed, drawn=reference.features)
    scores: dict[str, Any] = {
        "distance": _numbers(found.value),
        "unbiased": _numbers(found.unbiased),
        "size": found.size,
        "reference": reference.what,
        "reference_items": reference.moments.count,
    }
    if reference.features is not None:
        ours = features[rows_drawn(len(features), MOST_KERNEL, seed)]
        scores["kernel"] = _numbers(metrics.kernel_distance(ours, reference.features))
    logits = network.logits(features)
    if logits is not None:
        parts = max(1, min(PARTS, len(features) // PART))
        score = metrics.inception_score(logits, parts, seed)
        scores["score"] = {"parts": parts} | {name: _numbers(getattr(score, name)) for name in ("value", "unbiased", "published")}
    notes = []
    if found.size <= network.width:
        notes.append(
            f"{found.size} images are fewer than the {network.width} features: the distance is far too large, and of this number alone"
        )
    count = reference.moments.count
    if count is not None and count <= network.width:
        notes.append(f"the reference has {count} images, fewer than the {network.width} features: its covariance is singular")
    return scores | {"notes": notes}


def described(network: metrics.ImageFeatures, setting: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Which features they are, and what is done to images of this shape."""
    grey = check_images(shape)
    found = {"features": setting.partition(":")[0], "source": network.source, "sha256": network.sha256}
    return found | {"called": network.distance, "kernel_called": network.kernel} | ({"images": grey} if grey else {})


def lines_of(scores: Mapping[str, Any]) -> list[str]:
    """The scores in words, a line each, without a title."""
    called, size = scores["called"], scores["size"]
    beside = scores.get("held_out")
    lines = [f"{called} {shown_estimate(scores['distance'], 3)} at {size} images to {scores['reference']}"]
    unbiased = scores["unbiased"]
    if "reason" in unbiased:
        lines.append(f"its bias at so few images is not known: {unbiased['reason']}")
    else:
        lines.append(f"{shown_estimate(unbiased, 3)} extrapolated to infinitely many")
    if beside is not None:
        at = scores.get("at_held_out_size", scores["distance"])
        lines.append(
            f"held-out real data: {shown_estimate(beside, 3)}, samples {shown_estimate(at, 3)}, each at {scores['held_out_size']} images"
        )
    if "kernel" in scores:
        lines.append(
            f"{scores['kernel_called']} {shown_estimate(scores['kernel'], 5)} (unbiased: as often below zero as above it at no distance)"
        )
    if "score" in scores:
        score = scores["score"]
        parts = f"{shown_estimate(score['published'], 2)} over {score['parts']} parts, as papers print it with their spread"
        lines.append(f"Inception Score {shown_estimate(score['value'], 2)}, {shown_estimate(score['unbiased'], 2)} without bias; {parts}")
    return [*lines, scores["source"], *([scores["images"]] if "images" in scores else []), *scores["notes"]]


def check_settings(features: str, reference: str | None, data: Dataset) -> None:
    """ConfigError, before any work, for features that there are not, data that are no images, or a reference that does not suit."""
    try:
        kind, _ = features_named(features)
        if kind != LABELS:
            check_images(data.shape)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if kind == LABELS:
        if reference is not None:
            raise ConfigError(f"a reference ({reference}) needs features that others have: --features inception:FILE, got {features!r}")
        return
    network = network_of(features)
    if reference is not None:
        read_moments(network, reference)


class ImageScores:
    """Scores of images to the training data of a run, or to moments in a file; what depends on the data alone is worked out once.

    Under torchrun all processes ask the same and share out the features; the answers are the first one's alone, and the others get an
    empty dictionary.

    Args:
        data: the run's; directory: where features of training data are kept; features: the setting; reference: an .npz of moments.
    """

    def __init__(
        self, data: Dataset, directory: Path, features: str, reference: str | None = None, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self.data, self.directory, self.setting, self.path, self.seed = data, directory, features, reference, seed
        self.network = network_of(features, device)
        self.description = DataDescription.of(data)
        self.about = described(self.network, features, data.shape)

    @property
    def key(self) -> str:
        """What the Frechet distance is called in files."""
        return CALLED[self.network.distance]

    def features_of(self, x: Tensor) -> Tensor:
        """(N, D) of items (N, *shape) in the data's own units."""
        return parallel.by_shares(lambda part: self.network.features(as_pictures(self.description, part)), x)

    @cached_property
    def reference(self) -> Reference:
        """That of the file, or of the training items in memory, which are kept in the run directory."""
        if self.path is not None:
            return read_moments(self.network, self.path)
        of = f"{len(self.data.train)} training images"
        file = self.directory / "features" / f"{self.about['features']}.safetensors"
        key = json.dumps([FORMAT, self.network.name, self.network.sha256, self.data.signature(), len(self.data.train)])
        kept = _read_kept(file, key)
        if kept is None:
            features = self.features_of(self.data.train)
            moments = metrics.Moments.of(features)
            drawn = features[rows_drawn(len(features), MOST_KERNEL, self.seed)]
            kept = {"mean": moments.mean, "covariance": moments.covariance, "features": drawn}
            if parallel.rank() == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(file) as temporary:
                    safetensors.torch.save_file({name: value.contiguous() for name, value in kept.items()}, temporary, {"key": key})
        return Reference(metrics.Moments(kept["mean"], kept["covariance"], len(self.data.train), of), kept["features"], of)

    def __call__(self, x: Tensor, size: int | None = None) -> dict[str, Any]:
        """The scores of items (N, *shape), N >= 20; of `size` drawn ones where that is given."""
        x = x if size is None else x[rows_drawn(len(x), size, self.seed)]
        reference, ours = self.reference, self.features_of(x)
        return {} if parallel.rank() > 0 else self.about | scores_of(self.network, ours, reference, self.seed)

    def beside_held_out(self, x: Tensor) -> dict[str, Any]:
        """The same with the distance of as many held-out items beside it, and of as many samples where there are more."""
        held = self.data.test
        reference, ours = self.reference, self.features_of(x)
        size = 0 if held is None else min(len(held), len(x))
        theirs = None if held is None or size < LEAST else self.features_of(held[rows_drawn(len(held), size, self.seed)])
        if parallel.rank() > 0:
            return {}
        found = self.about | scores_of(self.network, ours, reference, self.seed)
        if theirs is not None:

            def distance(features: Tensor) -> dict[str, Any]:
                return _numbers(metrics.frechet_to(features, reference.moments, seed=self.seed, drawn=reference.features).value)

            found |= {"held_out": distance(theirs), "held_out_size": size}
            if size < len(ours):
                found["at_held_out_size"] = distance(ours[rows_drawn(len(ours), size, self.seed)])
        return found

    def seconds(self, samples: int) -> float:
        """About what the features of so many samples, the held-out items beside them and the reference take."""
        some = as_pictures(self.description, self.data.train[rows_drawn(len(self.data.train), PROBED, 0)])
        began = time.monotonic()
        self.network.features(some)
        each = (time.monotonic() - began) / len(some)
        file = self.directory / "features" / f"{self.about['features']}.safetensors"
        train = 0 if self.path is not None or file.exists() else len(self.data.train)
        return each * (samples + train + min(samples, 0 if self.data.test is None else len(self.data.test)))


def _read_kept(file: Path, key: str) -> dict[str, Tensor] | None:
    try:
        with safetensors.safe_open(file, framework="pt") as content:
            if (content.metadata() or {}).get("key") != key:
                return None
            return {name: content.get_tensor(name) for name in ("mean", "covariance", "features")}
    except (OSError, safetensors.SafetensorError):
        return None  # missing or broken: both are mended by making it


def _numbers(estimate: metrics.Estimate) -> dict[str, Any]:
    found = asdict(estimate)
    if not found["reason"]:
        del found["reason"]
    return found
