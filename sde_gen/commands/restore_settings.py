"""What degraded data are restored from, and how: the settings of `sde-gen restore`, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..inverse import METHODS
from ..randomness import check_seed
from ..registry import canonical
from ..solvers import SOLVERS
from .config import ConfigError
from .measurement_text import OPERATORS, parse_noise, parse_operator

NO_GAPS = "0.05"
"""Noise where none is asked for, and 0 for `gaps`: cells that are given are known."""


@dataclass(frozen=True)
class RestoreSettings:
    """What is restored, and how.

    operator, noise: as `parse_operator` and `parse_noise` read them; None: `gaps` of an input, and no noise there but `NO_GAPS` else.
    methods: names in METHODS. input: a file of degraded items; None: items of the run's held-out data are degraded. items: how many of
    them. samples: of each posterior; particles: of a group of `twisted`, None: as many as samples. solver, steps, seed: as `posterior`
    takes them. batch: states at a time. label: the data's own label of what is restored. calibrate: problems of the test of calibration, 0
    for none. written: samples that are written beside mean and standard deviation of an input.
    """

    operator: str | None = None
    noise: str | None = None
    methods: tuple[str, ...] = ("twisted",)
    input: str | None = None
    items: int = 8
    samples: int = 64
    particles: int | None = None
    solver: str = "dpm_sde"
    steps: int = 100
    seed: int = 0
    batch: int = 512
    label: str | None = None
    calibrate: int = 0
    written: int = 5


def checked(settings: RestoreSettings) -> RestoreSettings:
    """The settings with registered names; ConfigError, in one line, before any work, for one that cannot be."""
    try:
        names = tuple(canonical(METHODS, "method", method) for method in settings.methods)
        settings = replace(settings, methods=names, solver=canonical(SOLVERS, "solver", settings.solver))
        if settings.operator is None and settings.input is None:
            raise ValueError(f"--operator or --input is needed: {', '.join(usage for usage, *_ in OPERATORS.values())}")
        name, _ = parse_operator(settings.operator or "gaps")
        if name == "gaps" and settings.input is None:
            raise ValueError("--operator gaps are the gaps of an --input; mask random SHARE makes some")
        parse_noise(noise_text(settings))
        if "oracle" in names:
            raise ValueError(
                f"method 'oracle' needs a law that is known; choose from {', '.join(name for name in METHODS if name != 'oracle')}"
            )
        if not settings.methods or len(set(settings.methods)) != len(settings.methods):
            raise ValueError(f"methods must be different names, got {','.join(settings.methods)!r}")
        for label, least in (("items", 2), ("samples", 2), ("steps", 1), ("batch", 1), ("calibrate", 0), ("written", 0)):
            if getattr(settings, label) < least:
                raise ValueError(f"{label} must be a whole number of at least {least}, got {getattr(settings, label)!r}")
        if settings.particles is not None and settings.particles < 1:
            raise ValueError(f"particles must be a whole number of at least 1, got {settings.particles!r}")
        if 0 < settings.calibrate < 20:
            raise ValueError(f"--calibrate takes at least 20 problems (0: no test), got {settings.calibrate}")
        check_seed(settings.seed)
        if settings.input is not None and not Path(settings.input).exists():
            raise ValueError(f"--input {settings.input}: no such file or folder")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return settings


def noise_text(settings: RestoreSettings) -> str:
    """The noise that is asked for, or what stands for it."""
    if settings.noise is not None:
        return settings.noise
    return "0" if (settings.operator or "gaps") == "gaps" else NO_GAPS
