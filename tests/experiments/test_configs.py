"""Each file of experiments/configs takes a step, at small size, and says what all of it will take."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from toys import Command

from sde_gen.commands.config import read_config, resolve

CONFIGS = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*.yaml"))
EXPECTED = re.compile(
    r"# expected  (.+) steps of 4 .*\(\w+, 1 thread\)(; |; then )sampling 16 with (\w+): .* calls .*; metrics about [\d.e-]+ s"
)


def write_files(root: Path) -> None:
    """Files like those of MNIST and of CIFAR-10, with 40 items for training."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        for kind, item in (("images-idx3", (28, 28)), ("labels-idx1", ())):
            header = struct.pack(f">HBB{1 + len(item)}I", 0, 8, 1 + len(item), count, *item)
            values = random.integers(0, 256 if item else 10, (count, *item), dtype=np.uint8)
            (root / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        records = random.integers(0, 256, (8, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (root / f"{name}.bin").write_bytes(records.tobytes())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_step_is_taken_and_the_cost_of_all_is_said(file: Path, sde_gen_command: Command, tmp_path: Path) -> None:
    config = resolve(read_config(file))
    small = ["model.options.width=8", "data.limit=24", "sampling.batch=16"]
    small += [] if "heads" in config.model.options else ["model.options.heads=2"] if config.model.network != "mlp" else []
    flags = [word for setting in small for word in ("--set", setting)]
    if config.data.name in ("mnist", "cifar10"):
        write_files(tmp_path)
        flags += ["--data-root", "."]
    code, out, err = sde_gen_command("run", "--config", str(file), "--batch", "4", "--samples", "16", *flags, "--dry-run")
    assert (code, err) == (0, []), err
    found = next(filter(None, map(EXPECTED.fullmatch, out)), None)
    assert found is not None, out[:3]
    left, limited = found[1], config.training.max_seconds is not None
    assert found[2] == ("; then " if limited else "; ")
    # On a fast machine the steps of so small a network end before the time does.
    assert left == str(config.training.steps) or (limited and left.startswith("about "))
    assert found[3] == config.sampling.solver
