"""What is measured of a run's samples, and the numbers that are kept."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics, parallel
from .. import progress as progress_bars
from ..data import Dataset, rows_drawn

MOST_NUMBERS = 20_000_000
"""Sliced Wasserstein distances sort projections of so many numbers for each split of their error bars: some seconds."""


MOST_REFERENCE, MOST_HELD_OUT = 10_000, 2_000
"""Neighbours and kernels cost the square of the set: at most so many training and held-out items are drawn for them."""


LEAST_PART = 20
"""Distances are not made of fewer items: where the held-out part has fewer, it is not measured beside the samples."""


MOST_CLASSES, SPLITS = 50, 16
"""Classes that are measured one by one, those with the most samples, and the splits that make the error bars of each."""


COLUMN_UNITS = "units of each column's standard deviation"


class SampleMetrics:
    """Distances of samples to a run's training data; what depends on the data alone is worked out once, at its first use.

    data: the run's; directory: where the feature network is kept; seed: of the error bars' splits. Under torchrun all processes
    ask it the same and share out features and nearest neighbours; what it answers stands in the first.
    """

    def __init__(self, data: Dataset, directory: Path, seed: int = 0) -> None:
        self.data, self.directory, self.seed = data, directory, seed

    @cached_property
    def features(self) -> metrics.FeatureNet:
        with parallel.first_alone():  # it fits the network, the others read it
            return metrics.cached_features(self.data, self.directory / "features")

    @cached_property
    def reference(self) -> Tensor:
        """The training vectors that others are compared with: all of them, or so many drawn ones as hold `MOST_NUMBERS`."""
        most = max(MOST_REFERENCE, MOST_NUMBERS // self.data.shape[0])
        return self.data.train if len(self.data.train) <= most else self.data.draw(most, self.seed)[0]

    @cached_property
    def of_train(self) -> Tensor:
        return self.features_of(self.data.train)

    def features_of(self, x: Tensor) -> Tensor:
        """(N, 64) of items (N, *shape)."""
        return parallel.by_shares(self.features.features, x)

    def nearest(self, x: Tensor) -> Tensor:
        """Distances (N,) of items (N, *shape) to the nearest of all training items, also where these lie on disk: a copy of an item is
        one whether or not the item is among those in memory."""
        items = self.data.training[0]
        if isinstance(items, Tensor):
            return parallel.by_shares(lambda part: metrics.nearest_distances(part, items), x)

        def nearest(part: Tensor) -> Tensor:
            found = part.new_full((len(part),), math.inf, dtype=torch.float64)
            for _, piece in items.pieces():
                found = torch.minimum(found, metrics.nearest_distances(part, piece))
            return found

        return parallel.by_shares(nearest, x)

    def common_size(self, samples: int) -> int | None:
        """The number of items at which the distances of so many samples and of the held-out part can stand side by side; None where
        that part is too small or not there."""
        held = 0 if self.data.test is None else len(self.data.test)
        return min(samples, held) if min(samples, held) >= LEAST_PART else None

    def of_held_out(self, size: int) -> dict[str, Any]:
        """The distance of held-out data, by parts of `size` items as the samples': what a perfect network's samples would score."""
        held = self.data.test
        if held is None:
            return {}
        if len(self.data.shape) == 1:
            if parallel.rank() > 0:
                return {}
            return {"held_out_sliced_wasserstein": _numbers(self._sliced(held, size))}
        if not self.data.classifiable:
            return {}
        theirs, of_train = self.features_of(held), self.of_train
        if parallel.rank() > 0:
            return {}
        return {"held_out_frechet_distance": _numbers(metrics.frechet_distance(theirs, of_train, seed=self.seed, size=_part(theirs, size)))}

    def _sliced(self, x: Tensor, size: int | None) -> metrics.Estimate:
        return metrics.sliced_wasserstein(x, self.reference, seed=self.seed, size=_part(x, size), scale="reference")

    @cached_property
    def held_out_near(self) -> Tensor | None:
        """Distance of held-out items to the nearest training item; None where there are none."""
        held = self.data.test
        return None if held is None or len(held) < 2 else self.nearest(held[rows_drawn(len(held), MOST_HELD_OUT, self.seed)])

    def __call__(self, x: Tensor, size: int | None = None) -> dict[str, Any]:
        """The metrics of samples (N, *shape) in the data's own units, N >= 20, by name: {"value", "std_error"} each.

        size: distances are those of so many items, as means over random parts of the samples; None, or no fewer than N, takes all.
        """
        data, seed = self.data, self.seed
        scores: dict[str, Any] = {}
        images = len(data.shape) > 1
        # What all processes do comes first.
        ours = self.features_of(x) if images and data.classifiable else None
        of_train = None if ours is None else self.of_train
        nearest = self.nearest(x) if images and self.held_out_near is not None else None
        if parallel.rank() > 0:
            return {}
        if not images:
            scores["sliced_wasserstein"] = _numbers(self._sliced(x, size))
            scores["distance_unit"] = COLUMN_UNITS
            if data.modes is not None:
                scores["mode_fractions"] = [_numbers(fraction) for fraction in metrics.mode_fractions(x, data.modes)]
            return scores
        if ours is not None and of_train is not None:
            accuracy = self.features.accuracy
            judged = "no held-out labels to test it on" if accuracy is None else f"{accuracy:.1%} held-out accuracy"
            scores["features"] = f"{type(self.features).__name__} trained on the labels of {data.name}: {judged}"
            near = of_train[rows_drawn(len(of_train), MOST_REFERENCE, seed)]
            scores["frechet_distance"] = _numbers(metrics.frechet_distance(ours, of_train, seed=seed, size=_part(ours, size)))
            scores["kernel_distance"] = _numbers(metrics.kernel_distance(ours, near))
            precision, recall = metrics.precision_recall(ours, near)
            scores |= {"precision": _numbers(precision), "recall": _numbers(recall)}
        if nearest is not None and self.held_out_near is not None:
            scores["memorised_fraction"] = _numbers(metrics.memorised_of(nearest, self.held_out_near))
            scores["neighbour_ratio"] = _numbers(metrics.neighbour_ratio(nearest, self.held_out_near))
        return scores

    def by_class(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        """The samples (N, *shape) of each class that they were drawn for, labels (N,) int64.

        "confirmed": the share of all that the features' classifier takes for that class; "judge": its accuracy on held-out items, or
        None. "classes": a row for each class, with "name",
        "samples", "confirmed", "distance" to that class's training items and "held_out", that of its held-out items; None where there
        are fewer than `LEAST_PART` samples or items, with a "reason". "size": at so many items, one number for all classes.
        "distance": which it is.
        """
        data = self.data
        images = len(data.shape) > 1
        held_labels = None if data.test is None else data.test_labels
        features = self.features_of(x)
        ours = features if images else x
        of_train = self.of_train if images else data.train
        held = None if held_labels is None or data.test is None else self.features_of(data.test) if images else data.test
        if parallel.rank() > 0:
            return {}
        assert data.train_labels is not None
        guess = self.features.head(features).argmax(1)
        counts, in_train = (part.bincount(minlength=data.classes or 0).tolist() for part in (labels, data.train_labels))
        in_held = [0] * len(counts) if held_labels is None else held_labels.bincount(minlength=len(counts)).tolist()
        order = sorted(range(len(counts)), key=lambda k: -counts[k])[:MOST_CLASSES]
        known = [k for k in order if min(counts[k], in_train[k]) >= LEAST_PART]
        beside = [k for k in known if in_held[k] >= LEAST_PART]
        size = min([counts[k] for k in known] + [in_held[k] for k in beside], default=None)

        def distance(items: Tensor, of_items: Tensor, k: int) -> dict[str, Any]:
            mine, theirs = items[of_items == k], of_train[data.train_labels == k][:MOST_REFERENCE]
            common: dict[str, Any] = {"bootstrap": SPLITS, "seed": self.seed, "size": _part(mine, size)}
            if images:
                return _numbers(metrics.frechet_distance(mine, theirs, **common))
            return _numbers(metrics.sliced_wasserstein(mine, theirs, scale=self.spread, **common))

        rows = []
        for k in sorted(order):
            if not counts[k] and not in_train[k]:
                continue
            name = str(k if data.label_names is None else data.label_names[k])
            row: dict[str, Any] = {"name": name, "samples": counts[k], "distance": None, "held_out": None, "confirmed": None}
            if counts[k]:
                row["confirmed"] = _numbers(metrics.share(guess[labels == k] == k))
            if k in known:
                row["distance"] = distance(ours, labels, k)
            else:
                row["reason"] = f"{counts[k]} samples and {in_train[k]} training items of {name}; {LEAST_PART} of each are needed"
            if k in beside and held is not None and held_labels is not None:
                row["held_out"] = distance(held, held_labels, k)
            rows.append(row)
        which = "frechet_distance" if images else "sliced_wasserstein"
        confirmed = _numbers(metrics.share(guess == labels))
        return {"size": size, "distance": which, "confirmed": confirmed, "judge": self.features.accuracy, "classes": rows}

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each entry of the training vectors, 1 where it does not vary."""
        std = self.reference.double().std(0)
        return torch.where(std > 0, std, 1.0)


def measure(
    data: Dataset, x: Tensor, directory: Path, seed: int = 0, progress: bool = False, labels: Tensor | None = None
) -> dict[str, Any]:
    """Distances of samples `x` to the training data (see `SampleMetrics`), held-out data measured the same way beside them: both at the
    same number of items, "distance_size". labels: (N,) classes that the samples were drawn for, which adds "by_class"."""
    sample_metrics = SampleMetrics(data, directory, seed)
    size = sample_metrics.common_size(len(x))
    with progress_bars.bar(None, "metrics", "part", progress and parallel.rank() == 0, leave=False):
        scores = sample_metrics(x, size)
        beside = {} if size is None else sample_metrics.of_held_out(size)
        if labels is not None and data.classifiable:
            beside |= {"by_class": sample_metrics.by_class(x, labels.cpu())}
    if "frechet_distance" in scores or "sliced_wasserstein" in scores:
        scores["distance_size"] = len(x) if size is None else size
    return scores | beside


def _part(x: Tensor, size: int | None) -> int | None:
    return None if size is None or size >= len(x) else size


def _numbers(estimate: metrics.Estimate) -> dict[str, Any]:
    reason = {"reason": estimate.reason} if estimate.reason else {}
    return {"value": estimate.value, "std_error": estimate.std_error, **reason}
