"""Devices by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor


def find_device(device: torch.device | str | None) -> torch.device:
    """The device of this name, or, for None, CUDA where there is one and else the CPU; ValueError, one line, for one that is not here."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; try cpu, cuda or cuda:0") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, and PyTorch sees no CUDA device here; leave it out or use cpu")
    return found


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """In here a card is PyTorch's current one: its events and graphs are those of the current card's stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """In here a GPU works products and convolutions of float32 with factors of 10 bits of mantissa (TF32), or in full; the setting is
    PyTorch's own, for the whole process, and afterwards it is what it was."""
    backends: Any = torch.backends
    places: tuple[Any, ...] = (backends.cuda.matmul, backends.cudnn)
    name, value = "allow_tf32", cast(bool | str, tf32)
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:  # from PyTorch 2.9 on, where somebody has used its newer names: the older ones answer no longer
        places, name, value = (backends.cuda.matmul, backends.cudnn.conv), "fp32_precision", "tf32" if tf32 else "ieee"
        before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            setattr(place, name, was)


STATE_OF_CARD = 16
"""Bytes of the state of a card's generator, its seed and offset."""


def random_state(device: torch.device) -> Tensor:
    """The state of the global generators that a computation on `device` may draw from: the host's, then the card's."""
    host = torch.get_rng_state()
    return torch.cat((host, torch.cuda.get_rng_state(device))) if device.type == "cuda" else host


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set the global generators to `state` of `random_state`; the card's stays as it is where the state is another device's. ValueError
    for what is no such state."""
    host = len(torch.get_rng_state())
    if len(state) not in (host, host + STATE_OF_CARD):
        raise ValueError(f"a state of random generators has {host} or {host + STATE_OF_CARD} bytes, got {len(state)}")
    torch.set_rng_state(state[:host])
    if device.type == "cuda" and len(state) > host:
        torch.cuda.set_rng_state(state[host:], device)


class OnItsWay:
    """A tensor's values on their way to the host, behind the work that the device had when this was made and not behind later work.

    value: the tensor; one on the CPU is there already.
    """

    def __init__(self, value: Tensor) -> None:
        self._there, self._event = value, None
        if value.device.type == "cuda":
            self._there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(value.device))

    def arrived(self) -> Tensor:
        """The values on the host, waited for."""
        if self._event is not None:
            self._event.synchronize()
        return self._there
