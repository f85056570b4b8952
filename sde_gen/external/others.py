"""Checkpoints that are known and not read: one line on what each is, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..pickles import PickleError, Record
from ..tensor_files import state_of
from .imported import mapping


def _named(tree: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one that is under "state_dict"."""
    inside = mapping(tree).get("state_dict")
    found = mapping(inside if isinstance(inside, dict | Record) else tree)
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _count(named: Mapping[str, Tensor], prefix: str = "") -> str:
    return f"{sum(value.numel() for key, value in named.items() if key.startswith(prefix)) / 1e6:.3g} million parameters"


def _latent(tree: Any) -> str | None:
    named = _named(tree)
    if not any(key.startswith("model.diffusion_model.") for key in named):
        return None
    codec = any(key.startswith("first_stage_model.") for key in named)
    scale = named.get("scale_factor")
    told = "" if scale is None or scale.numel() != 1 else f", times {float(scale):.5g}"
    where = f"the autoencoder in the same file (first_stage_model{told})" if codec else "an autoencoder that is not in the file"
    return (
        f"it is of latent-diffusion: its U-Net of {_count(named, 'model.diffusion_model.')} works on the latents of {where}, and latents "
        "are not read yet: of a pipeline of diffusers of the same weights from_diffusers takes the network"
    )


def _edm2(tree: Any) -> str | None:
    for part in mapping(tree).values():
        if isinstance(part, Record):
            try:
                state = state_of(part)
            except PickleError:
                continue
            if any(key.endswith("emb_fourier.freqs") for key in state):
                return (
                    f"it is of EDM2: {len(state)} tensors, {_count(state)}, of a network whose layers keep magnitudes, which is not among "
                    "ours: of that group's files those of EDM are read"
                )
    return None


def _classifier(tree: Any) -> str | None:
    named = _named(tree)
    if {"time_embed.0.weight", "input_blocks.0.0.weight"} <= set(named) and not any(key.startswith("output_blocks.") for key in named):
        return f"it is a classifier of noisy pictures (guided-diffusion), of {_count(named)}: only networks that denoise are read"
    return None


def _unet_of_diffusers(tree: Any) -> str | None:
    if {"conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"} <= set(_named(tree)):
        return "it has the weights of a U-Net of diffusers alone: give the folder that it is in, with config.json and the scheduler's"
    return None


OTHERS: tuple[Callable[[Any], str | None], ...] = (_latent, _edm2, _classifier, _unet_of_diffusers)


def known_other(tree: Any) -> str | None:
    """What a tree is and what is missing, where it is a checkpoint that is known and not read; else None."""
    return next((said for find in OTHERS if (said := find(tree)) is not None), None)
