"""What sde_gen does on a GPU, in one command of at most twelve minutes and without a download.

    python benchmarks/gpu.py                                             # all phases that have what they need
    python benchmarks/gpu.py --cifar cifar                               # with CIFAR-10: a directory of its binary files, or an archive
    python benchmarks/gpu.py --phases sampling,training --seconds 300
    python benchmarks/gpu.py --dry-run cpu                               # what a CPU can run of it, at toy size

Phases, in order of worth; each is a process of its own with a limit of time, and writes a line of JSON as soon as it has measured
something, so that a cut-off or a crash loses only what was running:

    tests       tests/test_cuda.py and the tests that run on every device
    sampling    milliseconds of a network call inside every fixed-step solver over those of the bare network, in a plain loop and
                captured as a CUDA graph (over the bare network's graph), and how often the loop waits for the device; the adaptive
                solvers; likelihoods of 512 images, and what TF32 changes in them
    training    images a second of the CIFAR-size U-Net in each precision and layout, from the device and streamed, and of diffusers'
                UNet2DModel of equal parameters; the share of the card's measured peak; where the kernels' time goes
    cifar       a network trained for some minutes, its samples beside held-out images, bits per dimension, a picture
    processes   two processes and one: the same gradients and samples (gloo where they share a card, NCCL where each has its own)

The exit code is 1 where a phase failed, a test among them, or was cut off. A time is the median of several; per call, the slope between a
short and a long run, which leaves out what a run costs once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_cifar import cifar, read_cifar
from gpu_phase import FULL, HERE, TOY, Bench, run_until, spread
from gpu_sampling import sampling
from gpu_training import training
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sde_gen
from sde_gen import metrics, parallel
from sde_gen.devices import float32_products
from sde_gen.sampling.sample import sample_together
from sde_gen.training import TrainSettings, build_model
from sde_gen.training.trainer import Trainer

LIMITS = {"tests": 110, "sampling": 110, "training": 170, "cifar": 270, "processes": 60}
"""Seconds of each phase; with --seconds they are longer or shorter in proportion."""
TOLERANCE = 1e-4
"""Two processes and one may differ by this much, in normalised units."""


def tests(bench: Bench) -> None:
    """The tests that a device can fail; on the CPU they are collected."""
    chosen = ["tests", "-k", "cuda", "-n", "12", "--continue-on-collection-errors", "--timeout", "60", "--durations", "10"]
    if not bench.cuda:
        chosen = ["tests/test_cuda.py", "--collect-only", "-n", "0"]
    log = bench.out / "tests.log"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    with log.open("w", encoding="utf-8") as file:
        code = run_until(command, bench.until - 8, cwd=HERE.parent, stdout=file, stderr=subprocess.STDOUT)
    text = log.read_text(encoding="utf-8", errors="replace")
    if not bench.cuda:
        assert code == 0, text
        bench.say("collected", code=code)
        return
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text)}
    names = sorted(set(re.findall(r"(?:FAILED|ERROR) (tests/\S+)", text)))
    bench.say("tests", code=code, **counts, not_passed=names)
    if code != 0:
        raise RuntimeError(f"the tests {'were cut off' if code is None else f'ended with code {code}'}: see {log}")


def processes(bench: Bench) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for count in (1, 2):
            file = Path(place) / f"{count}.safetensors"
            began = time.monotonic()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", __file__]
            path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            log = bench.out / f"{count}-processes.log"
            with log.open("w", encoding="utf-8") as output:
                worker = [*command, "--worker", str(file), "--device", bench.device.type]
                code = run_until(worker, bench.until - 8, env=environment, stdout=output, stderr=subprocess.STDOUT)
            if code != 0:
                raise RuntimeError(f"{count} processes, {'cut off' if code is None else code}: {log.read_text()[-3000:]}")
            found[count] = load_file(file)
            with safe_open(file, "pt") as kept:
                backend = kept.metadata()["backend"]
            bench.say(f"{count} processes", seconds=time.monotonic() - began, backend=backend)
    apart = {name: float((found[2][name].double() - found[1][name].double()).abs().max()) for name in found[1]}
    bench.say("two processes and one, largest difference", **apart, tolerance=TOLERANCE)
    if max(apart.values()) > TOLERANCE:
        raise RuntimeError(f"two processes give something else than one: {apart}")


def worker(file: Path, device: torch.device) -> None:
    """What each process of the phase `processes` does."""
    x = sde_gen.load_dataset("digits").train
    with parallel.processes(device) as place:
        backend = "none" if parallel.world() == 1 else torch.distributed.get_backend_config()
        model = spread(build_model(x, network="unet", network_options=TOY.digits)).to(place)
        settings = TrainSettings(steps=10, batch=32, warmup=2, evaluations=1, tf32=False, clip=1e9)
        kept: list[Tensor] = []
        trainer = Trainer(model, x, settings, None, None, None, place)
        hook = trainer.optimizer.register_step_pre_hook(lambda *_: kept.extend(p.grad.clone() for p in trainer.parameters))
        with trainer.running():
            trainer.advance()
            hook.remove()
            while not trainer.done:
                trainer.advance()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        with float32_products(False):
            out = sample_together(trainer.result.model, (16, 1, 8, 8), solver="em", steps=20, progress=False)
        if parallel.rank() == 0:
            gradients = torch.cat([gradient.flatten() for gradient in kept])
            kept_tensors = {"gradients": gradients, "weights": weights, "samples": out.x}
            save_file({name: value.cpu().contiguous() for name, value in kept_tensors.items()}, file, {"backend": str(backend)})


PHASES: dict[str, Callable[[Bench], None]] = {
    "tests": tests,
    "sampling": sampling,
    "training": training,
    "cifar": cifar,
    "processes": processes,
}


def start(name: str, arguments: argparse.Namespace, limit: float) -> bool:
    """A phase in a process of its own; whether it came to its end."""
    command = [sys.executable, __file__, "--only", name, "--until", f"{time.time() + limit:.1f}"]
    command += ["--device", arguments.device, "--out", str(arguments.out)]
    command += ["--cifar", str(arguments.cifar)] if arguments.cifar else []
    command += ["--toy"] if arguments.toy else []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=limit)
        why = None if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        why = f"cut off after {limit:.0f} s"
    finally:  # of what it has started nothing may disturb what comes after; torchrun's processes are torchrun's to end
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 0.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=patience)
    if why is not None:
        print(f"{name:9} {why}", flush=True)
        with (arguments.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"phase": name, "what": "ended early", "reason": why}) + "\n")
    return why is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(PHASES), help="names with commas between them")
    parser.add_argument("--seconds", type=float, help=f"for all phases together (default: theirs, {sum(LIMITS.values())} for all)")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--cifar", type=Path, help="CIFAR-10: an archive or a directory that sde_gen reads")
    parser.add_argument(
        "--out", type=Path, help="directory of gpu.jsonl, logs and picture (default results/gpu; of a toy, a temporary one)"
    )
    parser.add_argument("--dry-run", choices=["cpu"], help="everything at toy size")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--toy", action="store_true", help="everything at toy size, on a GPU")
    for hidden in ("--only", "--worker", "--features"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.device, arguments.toy = arguments.dry_run, True
    unknown = sorted(set(arguments.phases.split(",")) - set(PHASES))
    if unknown:
        parser.error(f"unknown phase {', '.join(unknown)}; choose from {', '.join(PHASES)}")
    if arguments.cifar is not None and not arguments.cifar.exists():
        parser.error(f"--cifar {arguments.cifar}: it is not there")
    if arguments.features:
        metrics.cached_features(read_cifar(arguments.cifar), arguments.features)
        return 0
    if not arguments.dry_run and arguments.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device here; --dry-run cpu runs everything at toy size on the CPU", file=sys.stderr)
        return 2
    if arguments.worker:
        worker(Path(arguments.worker), torch.device(arguments.device))
        return 0
    if arguments.out is None:
        arguments.out = Path(tempfile.mkdtemp(prefix="gpu-toy-")) if arguments.toy else HERE / "results" / "gpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # of a toy, more would only wait for each other
    if arguments.only:
        size = TOY if arguments.toy else FULL
        bench = Bench(arguments.only, torch.device(arguments.device), size, arguments.until, arguments.out, arguments.cifar)
        PHASES[arguments.only](bench)
        return 0
    chosen = [name for name in PHASES if name in arguments.phases.split(",")]
    usual = sum(LIMITS[name] for name in chosen)
    factor = (arguments.seconds or usual) / usual
    ended = [start(name, arguments, LIMITS[name] * factor) for name in chosen]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
