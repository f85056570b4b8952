"""A small classifier of the data's own labels, whose last hidden layer is the space in which samples are compared.

Distances on these features are in their own scale: they compare models measured with the same network on the same data, and
nothing else. They are not Inception distances and must not be set beside published ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64
_FORMAT = 1
# Everything that the fit depends on beside the data and the seed; part of the key of a cached network.
_SETTINGS: dict[str, Any] = {
    "format": _FORMAT,
    "items": 20_000,
    "epochs": 30,
    "least_steps": 200,
    "steps": 600,
    "batch": 128,
    "rate": 3e-3,
    "decay": 0.05,
    "smoothing": 0.05,
}


class LabelledData(Protocol):
    """What `cached_features` reads of a data set; `sde_gen.data.Dataset` has it."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Tensor: ...
    @property
    def test(self) -> Tensor | None: ...
    @property
    def train_labels(self) -> Tensor | None: ...
    @property
    def test_labels(self) -> Tensor | None: ...


class FeatureNet(nn.Module):
    """A classifier with 64 features: convolutions for items (C, H, W), a multilayer perceptron for any other shape.

    Items come in the data's own units; they are standardised inside, by channel or by feature, in the type that the data have.

    Args:
        shape: shape of one item.
        classes: number of classes, at least 2.

    Attributes:
        accuracy: fraction of held-out items classified rightly, or None if none were given.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if not shape or min(shape) < 1 or classes < 2:
            raise ValueError(f"shape {shape} with {classes} classes; a non-empty shape and at least 2 classes are needed")
        self.shape, self.classes = tuple(shape), classes
        self.accuracy: float | None = None
        self.key = ""
        statistics = (shape[0], 1, 1) if len(shape) == 3 else shape
        self.register_buffer("mean", torch.zeros(statistics))
        self.register_buffer("std", torch.ones(statistics))
        self.body = _conv_body(shape) if len(shape) == 3 else _mlp_body(int(np.prod(shape)))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of items (B, *shape)."""
        logits: Tensor = self.head(self._embed(x))
        return logits

    @torch.no_grad()
    def features(self, x: Tensor, batch_size: int = 1000) -> Tensor:
        """Features (N, 64), float32 on the CPU, of items (N, *shape) in the data's own units on any device.

        Raises:
            ValueError: items of another shape.
        """
        if x.ndim < 1 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"items of shape {tuple(x.shape[1:])}; this network takes {self.shape}")
        parts = [self._embed(part.to(self.mean)).float().cpu() for part in x.detach().split(batch_size) if len(part)]
        return torch.cat(parts) if parts else torch.empty(0, FEATURES)

    @classmethod
    def fit(cls, train: Tensor, labels: Tensor, test: Tensor | None = None, test_labels: Tensor | None = None, seed: int = 0) -> FeatureNet:
        """Train the classifier; the same data and seed give the same network, and no global random state is touched.

        At most 20,000 training items (chosen by the seed) and 600 steps are used: seconds for 8x8 images, under a minute for
        28x28 on two cores.

        Args:
            train: (N, *shape), any real dtype, in the data's own units.
            labels: (N,) int64, 0 .. classes - 1.
            test, test_labels: held-out items for `accuracy`; they are not trained on.
            seed: of the initial weights, the subset and the order.

        Returns:
            The network in eval mode, without gradients.

        Raises:
            ValueError: labels that do not fit the data, fewer than two classes, or values that are not finite.
        """
        _check_labels("training", train, labels)
        classes = int(labels.max()) + 1
        if test is not None:
            _check_labels("held-out", test, test_labels)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(train), generator=generator)[: _SETTINGS["items"]]
        x, y = train.detach().cpu()[chosen], labels.cpu()[chosen]
        x = x if x.dtype == torch.float64 else x.float()
        net = _seeded(tuple(train.shape[1:]), classes, seed)
        net.mean, net.std = net.mean.to(x), net.std.to(x)
        over = (0, 2, 3) if x.ndim == 4 else (0,)
        std, mean = torch.std_mean(x, over, correction=0, keepdim=True)
        net.mean.copy_(mean[0])
        net.std.copy_(torch.where(std > 0, std, 1.0)[0])
        with _one_thread():
            _optimise(net, x, y, generator)
        net.eval().requires_grad_(False)
        if test is not None and test_labels is not None:
            with torch.no_grad():
                guess = net.head(net.features(test)).argmax(1)
            net.accuracy = float((guess == test_labels.cpu()).double().mean())
        return net

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to one safetensors file, its configuration as JSON in the header; atomic, and replaces."""
        config = {"shape": list(self.shape), "classes": self.classes, "accuracy": self.accuracy, "key": self.key, **_SETTINGS}
        content = safetensors.torch.save(
            {name: value.contiguous() for name, value in self.state_dict().items()}, metadata={"feature_net": json.dumps(config)}
        )
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureNet:
        """Read a network that `save` wrote.

        Raises:
            ValueError: the file is missing, broken, or not a feature network of this version.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {})["feature_net"])
                state = {name: file.get_tensor(name) for name in list(file.keys())}
            if config["format"] != _FORMAT:
                raise ValueError(f"format {config['format']}, {_FORMAT} is needed")
            with torch.device("meta"):  # allocates nothing, so a wrong configuration cannot ask for much memory
                net = cls(tuple(config["shape"]), config["classes"])
            net.load_state_dict(state, assign=True)
            net.accuracy, net.key = config["accuracy"], config["key"]
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{os.fspath(path)}: not a feature network that can be loaded ({reason}); fit it again") from error
        return net.eval().requires_grad_(False)

    def _embed(self, x: Tensor) -> Tensor:
        # Data that are float64, because float32 would round them too much, are rounded once they are standardised.
        standardised = ((x - self.mean) / self.std).to(next(self.body.parameters()))
        features: Tensor = self.body(standardised)
        return features


def cached_features(dataset: LabelledData, directory: str | os.PathLike[str], seed: int = 0) -> FeatureNet:
    """The feature network of a data set: the one in `directory` if it was fitted to the same data, else a new one, kept there.

    The file is `features.safetensors`. It is reused if the SHA-256 of data, labels, fit settings and seed matches; a broken or
    other file is replaced.

    Raises:
        ValueError: the data set has no labels.
    """
    if dataset.train_labels is None:
        raise ValueError(f"data {dataset.name!r} has no labels; a feature network needs labelled data")
    path = Path(directory) / "features.safetensors"
    key = _key(dataset, seed)
    try:
        net = FeatureNet.load(path)
        if net.key == key:
            return net
    except ValueError:
        pass  # missing or broken: both are mended by fitting
    test = None if dataset.test_labels is None else dataset.test
    net = FeatureNet.fit(dataset.train, dataset.train_labels, test, dataset.test_labels, seed=seed)
    net.key = key
    path.parent.mkdir(parents=True, exist_ok=True)
    net.save(path)
    return net


def _conv_body(shape: tuple[int, ...]) -> nn.Sequential:
    channels, height, width = shape
    # Large images are halved at once: on a CPU the full-resolution layer would cost more than all the others.
    stride = 2 if min(height, width) >= 16 else 1
    return nn.Sequential(
        *_conv(channels, 16, stride),
        *_conv(16, 32, 2),
        *_conv(32, 64, 1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 16, FEATURES),
    )


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()


def _mlp_body(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 128), nn.BatchNorm1d(128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, FEATURES)
    )


def _seeded(shape: tuple[int, ...], classes: int, seed: int) -> FeatureNet:
    # PyTorch's layers draw their weights from the default generator: seed that one and put it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return FeatureNet(shape, classes)


@contextmanager
def _one_thread() -> Iterator[None]:
    # Layers this small gain nothing from more threads and wait long for each other on a busy machine; and sums split over
    # threads would make the weights depend on their number.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fit_seconds(train: Tensor, classes: int) -> float:
    """About how long `FeatureNet.fit` takes on items (N, *shape), from two of its steps; no random state is touched."""
    net = _seeded(tuple(train.shape[1:]), classes, 0)
    x, took = train[: _SETTINGS["batch"]].detach().cpu().float(), []
    with _one_thread():
        for _ in range(2):  # the first one allocates
            began = time.monotonic()
            net(x).sum().backward()
            took.append(time.monotonic() - began)
    return took[-1] * _fit_steps(min(len(train), _SETTINGS["items"]))


def _fit_steps(count: int) -> int:
    passes: int = _SETTINGS["epochs"] * -(-count // min(_SETTINGS["batch"], count))
    return min(int(_SETTINGS["steps"]), max(int(_SETTINGS["least_steps"]), passes))


def _optimise(net: FeatureNet, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
    batch = min(_SETTINGS["batch"], len(x))
    steps = _fit_steps(len(x))
    optimizer = torch.optim.AdamW(net.parameters(), lr=_SETTINGS["rate"], weight_decay=_SETTINGS["decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _SETTINGS["rate"], total_steps=steps, pct_start=0.2)
    order = torch.empty(0, dtype=torch.int64)
    net.train()
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(x), generator=generator)
        index, order = order[:batch], order[batch:]
        loss = F.cross_entropy(net(x[index]), y[index], label_smoothing=_SETTINGS["smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _check_labels(part: str, values: Tensor, labels: Tensor | None) -> None:
    if labels is None or values.ndim < 2 or len(values) < 2 or labels.shape != values.shape[:1] or labels.dtype != torch.int64:
        found = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(
            f"{part} labels: {found} beside data of shape {tuple(values.shape)}; int64 (N,) beside (N, *shape), N >= 2, are needed"
        )
    if int(labels.min()) < 0 or (part == "training" and int(labels.min()) == int(labels.max())):
        raise ValueError(f"{part} labels span {int(labels.min())}..{int(labels.max())}; at least two classes 0, 1, ... are needed")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{part} data holds NaN or infinite values; finite numbers are needed")


def _key(dataset: LabelledData, seed: int) -> str:
    digest = hashlib.sha256(json.dumps({**_SETTINGS, "seed": seed}, sort_keys=True).encode())
    if dataset.train.dtype == torch.float64:
        digest.update(b"standardised in float64")
    for tensor in (dataset.train, dataset.train_labels, dataset.test, dataset.test_labels):
        digest.update(b"none" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
