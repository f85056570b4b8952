"""The phase `cifar` of gpu.py: a network trained for some minutes, its samples, its bits per dimension."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_phase import HERE, TOY, Bench, random_images

import sde_gen
from sde_gen import metrics
from sde_gen.commands.config import read_config, resolve
from sde_gen.likelihood.bits_per_dim import bits_per_dim
from sde_gen.metrics.features import FeatureNet
from sde_gen.report import picture_samples
from sde_gen.training import build_model, fit


def read_cifar(place: Path) -> Any:
    """CIFAR-10 with labels and test images, from its binary files or from images; ValueError, one line, for anything else."""
    if not place.exists():
        raise ValueError(f"--cifar {place}: it is not there")
    binary = (place.is_dir() and any(place.rglob("data_batch_1.bin"))) or place.name == "cifar-10-binary.tar.gz"
    root = place.parent if place.is_file() else place
    data = sde_gen.load_dataset("cifar10", root=str(root)) if binary else sde_gen.load_dataset(str(place))
    if data.shape != (3, 32, 32) or data.train_labels is None or data.test is None:
        raise ValueError(f"--cifar {place}: images of 3 x 32 x 32 with labels and a test part are needed, got {data.name}")
    return data


def cifar(bench: Bench) -> None:
    if bench.cifar is None and bench.size is not TOY:
        bench.say("left out", reason="give --cifar FILE")
        return
    began = time.monotonic()
    folder = bench.out / "features"
    fitting = None
    if bench.cifar is not None:  # the features are fitted on the CPU, beside the training
        fitting = subprocess.Popen([sys.executable, str(HERE / "gpu.py"), "--features", str(folder), "--cifar", str(bench.cifar)])
        data = read_cifar(bench.cifar)
        train, test, labels, test_labels = data.train, data.test, data.train_labels, data.test_labels
    else:
        train, test = random_images(64), random_images(256)[64:]
        labels, test_labels = torch.arange(64) % 10, torch.arange(192) % 10
    assert test is not None and labels is not None
    bench.say("data", read_seconds=time.monotonic() - began, items=len(train))
    config = resolve(read_config(HERE.parent / "experiments" / "configs" / "cifar10.yaml"))
    options, chosen = bench.size.cifar or config.model.options, config.model
    model = build_model(
        train, config.sde.name, chosen.network, chosen.prediction, normalizer=chosen.normalizer, network_options=options, conditions=10
    )
    limit = 2.0 if bench.size is TOY else max(10.0, bench.left - 70)  # what comes after the training takes the rest
    settings = replace(config.training, max_seconds=limit, batch=bench.size.cifar_batch or config.training.batch, evaluations=4)
    result = fit(model, train, settings, {"label": labels}, test, 256, bench.device, False, held_out_cond={"label": test_labels})
    entry = result.history[-1]
    bench.say(
        "training",
        seconds=result.seconds,
        steps=result.steps,
        images_a_second=result.steps * settings.batch / result.seconds,
        parameters=sum(p.numel() for p in model.parameters()),
        loss=entry["loss"],
        validation=entry.get("validation"),
    )
    drawn = torch.arange(bench.size.samples) % 10
    began = time.monotonic()
    out = sde_gen.sample(
        result.model, (len(drawn), 3, 32, 32), "dpm", steps=20, cond={"label": drawn}, batch_size=1000, progress=False, graph=bench.cuda
    )
    bench.wait()
    x = out.x.cpu()
    bench.say("samples", count=len(x), calls=int(out.nfe[0]), seconds=time.monotonic() - began)
    rows = torch.arange(min(100, len(x) // 10 * 10)).reshape(-1, 10).T.flatten()  # a row of the picture is a class
    picture_samples(x[rows], bench.out / "cifar10-gpu.png", value_range=(0.0, 255.0))
    began = time.monotonic()
    count = min(bench.size.test_images, len(test))
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    cond = None if test_labels is None else {"label": test_labels[rows].to(bench.device)}
    found = bits_per_dim(
        result.model, test[rows].long().to(bench.device), 256, "truncated_normal", cond=cond, rtol=1e-3, atol=1e-3, batch_size=128
    )
    bench.say(
        f"bits/dim of {count} test images",
        value=found.value,
        std_error=found.std_error,
        solver=found.solver,
        evaluations=found.nfe,
        seconds=time.monotonic() - began,
    )
    if fitting is not None:
        fitting.wait()
    if (folder / "features.safetensors").exists():
        net = FeatureNet.load(folder / "features.safetensors").to(bench.device)
        rows_of = {len(of): torch.randperm(len(of), generator=torch.Generator().manual_seed(0))[:10_000] for of in (test, train)}
        held_out, training_images = (net.features(of[rows_of[len(of)]]) for of in (test, train))  # archives lie sorted by class
        samples = net.features(x)
        both = min(len(samples), len(held_out))
        for label, features in (("samples", samples[:both]), ("held-out images", held_out[:both])):
            distance = metrics.frechet_distance(features, training_images, bootstrap=20)
            kernel = metrics.kernel_distance(features[:2000], training_images[:5000])
            precision, recall = metrics.precision_recall(features[:2000], training_images[:2000], bootstrap=5)
            bench.say(
                f"{both} {label} against {len(training_images)} training images",
                accuracy=net.accuracy,
                frechet=[distance.value, distance.std_error],
                kernel=[kernel.value, kernel.std_error],
                precision=[precision.value, precision.std_error],
                recall=[recall.value, recall.std_error],
            )
