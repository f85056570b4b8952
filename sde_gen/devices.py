"""Devices by name."""

from __future__ import annotations

import torch


def find_device(device: torch.device | str | None) -> torch.device:
    """The device of this name, or, for None, CUDA where there is one and else the CPU; ValueError, one line, for one that is not here."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; try cpu, cuda or cuda:0") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, and PyTorch sees no CUDA device here; leave it out or use cpu")
    return found
