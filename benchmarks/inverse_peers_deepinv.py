"""deepinv's samplers on one problem of inverse_mixture.py, run by a Python in which deepinv 0.5.0 is installed.

    python benchmarks/inverse_peers_deepinv.py FOLDER

FOLDER holds task.safetensors (means, log_weights, matrix, y) and task.json (std, count, steps, seed, scale). Samples in the data's units go
to found.safetensors, and what a method died of to faults.json. Each sampler is given the exact denoiser of the mixture, vectors as images
(B, 1, 1, d), and the operator with its singular vectors, so that systems are solved exactly.

The settings are those that did best on 4 problems which are not among those measured, of each: the variance-preserving and the exploding
SDE for the diffusions, weights for DPS, the first noise level and eta for DDRM, lambda and zeta for DiffPIR.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import torch
from deepinv.sampling import (
    DDRM,
    DDPMSolver,
    DiffPIR,
    DPSDataFidelity,
    MomentMatchingDataFidelity,
    PiGDMDataFidelity,
    PosteriorDiffusion,
    VarianceExplodingDiffusion,
    VariancePreservingDiffusion,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

METHODS: dict[str, dict[str, Any]] = {
    "mmps": {"sde": "ve"},
    "pigdm": {"sde": "ve"},
    "dps": {"sde": "vp", "guidance": "norm", "weight": 3.0},
    "ddrm": {"first": 1.0, "eta": 0.85},
    "diffpir": {"lambda_": 2.0, "zeta": 1.0},
}
REACH = 20.0
"""Data lie within +-REACH, which DiffPIR, whose images are from 0 to 1, clips to."""


class Exact(dinv.models.Denoiser):
    """E[x | x + sigma eps] of the mixture of unit Gaussians, in units in which the data are scale * x + shift."""

    def __init__(self, task: dict[str, Any], scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.means, self.log_weights, self.scale, self.shift = task["means"], task["log_weights"], scale, shift

    def forward(self, x: Tensor, sigma: Tensor | float, **kwargs: Any) -> Tensor:
        z = x.flatten(1) * self.scale + self.shift
        noise = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1) * self.scale
        variance = 1 + noise**2
        logits = (z @ self.means.T - 0.5 * self.means.square().sum(1)) / variance + self.log_weights
        mean = logits.softmax(1) @ self.means
        return ((mean + (z - mean) / variance - self.shift) / self.scale).reshape(x.shape)


def physics(task: dict[str, Any], scale: float) -> dinv.physics.DecomposablePhysics:
    """The operator on data in units of `scale`, by its singular vectors, of which the data's are as many as dimensions."""
    matrix = task["matrix"]
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=True)
    u, vt, (measured, dim) = u.float(), vt.float(), matrix.shape
    return dinv.physics.DecomposablePhysics(
        U=lambda c: c[..., :measured] @ u.T,
        U_adjoint=lambda y: torch.nn.functional.pad(y @ u, (0, dim - measured)),
        V=lambda c: c @ vt,
        V_adjoint=lambda x: x @ vt.T,
        img_size=(1, 1, dim),
        mask=torch.nn.functional.pad(scale * values.float(), (0, dim - measured)).reshape(1, 1, 1, dim),
        noise_model=dinv.physics.GaussianNoise(task["std"]),
    )


def draw(name: str, settings: dict[str, Any], task: dict[str, Any]) -> Tensor:
    """Samples (count, d) in the data's units."""
    count, steps, dim = task["count"], task["steps"], task["means"].shape[1]
    y = task["y"].reshape(1, 1, 1, -1).expand(count, -1, -1, -1).clone()
    if name == "diffpir":
        scale, shift = 2 * REACH, -REACH
        y = y - task["matrix"].sum(1) * shift
        fidelity = dinv.optim.data_fidelity.L2()
        x = DiffPIR(Exact(task, scale, shift), fidelity, sigma=task["std"], max_iter=steps, **settings)(y, physics(task, scale))
        return (x.flatten(1) * scale + shift).detach()
    scale, one = task["scale"], Exact(task, task["scale"])
    if name == "ddrm":
        levels = np.append(np.geomspace(settings["first"], 1e-3, steps), 0.0) if settings["first"] > 1 else np.linspace(1, 0, steps + 1)
        x = DDRM(one, sigmas=levels, eta=settings["eta"])(y, physics(task, scale))
        return (x.flatten(1) * scale).detach()
    measured = len(task["matrix"])
    fidelity = {
        "mmps": lambda: MomentMatchingDataFidelity(cg_max_iter=measured),
        "pigdm": lambda: PiGDMDataFidelity(cg_max_iter=measured),
        "dps": lambda: DPSDataFidelity(guidance=settings["guidance"], weight=settings["weight"]),
    }[name]()
    sde = {"vp": VariancePreservingDiffusion, "ve": VarianceExplodingDiffusion}[settings["sde"]](alpha=1.0)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sampler = PosteriorDiffusion(fidelity, one, sde, DDPMSolver(times, rng=torch.Generator()), minus_one_one=False)
    x = sampler(y, physics(task, scale), x_init=(count, 1, 1, dim), seed=task["seed"])
    return (x.flatten(1) * scale).detach()


def main(folder: Path) -> None:
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    task |= {name: value.float() for name, value in load_file(folder / "task.safetensors").items()}
    torch.set_num_threads(1)
    found, faults = {}, {}
    for name, settings in METHODS.items():
        torch.manual_seed(task["seed"])
        try:
            found[name] = draw(name, settings, task).double().contiguous()
        except Exception as error:
            faults[name] = f"{type(error).__name__}: {str(error)[:200]}"
    save_file(found, folder / "found.safetensors")
    (folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
