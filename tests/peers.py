"""Other libraries in tests: imported where they are installed and work here, else the test is skipped with the reason."""

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest
import torch

_KEPT: list[torch.library.Library] = []
OPERATORS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))


def let_torchvision_in() -> None:
    """torchvision's wheel registers shapes of operators that its library, built for another PyTorch, does not bring here: they are
    declared, so that the libraries that import it can be. Nothing in these tests calls them."""
    if _KEPT or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError, OSError):
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for operator in OPERATORS:
            _KEPT[0].define(operator)


def _bare(package: str) -> None:
    """A package without what its __init__ imports, which for k-diffusion's is far more than its samplers need."""
    spec = importlib.util.find_spec(package)
    if package not in sys.modules and spec is not None:
        bare = types.ModuleType(package)
        bare.__path__, bare.__spec__ = list(spec.submodule_search_locations or ()), spec
        sys.modules[package] = bare


def peer(name: str) -> Any:
    """The module `name` of another library; skips the test where it cannot be had."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name.partition('.')[0]} is not installed (pip install 'sde_gen[peers]')")
    let_torchvision_in()
    if name.startswith("k_diffusion."):
        _bare("k_diffusion")
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported here: {' '.join(str(error).split())[:120]}")
