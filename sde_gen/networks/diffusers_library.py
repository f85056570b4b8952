"""Networks of the library diffusers, by the library's own classes; it is imported where one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions import Condition, Label, SequenceCondition
from .base import Network

CLOCKS = ("step", "whole_step", "sigma")


def diffusers_library() -> Any:
    """The package diffusers; ImportError, one line, where it is not installed or does not work."""
    try:
        import diffusers  # type: ignore[import-not-found,unused-ignore]

        diffusers.ModelMixin  # noqa: B018  what it holds is imported late
    except Exception as error:
        said = "" if isinstance(error, ModuleNotFoundError) else f" ({' '.join(str(error).split())[:100]})"
        raise ImportError(f"this network is one of the package diffusers, which is not here: pip install diffusers{said}") from error
    return diffusers


class GivenLabel(Label):
    """Labels that are handed on as they are."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__(name, 1, (), classes)
        del self.table


class GivenTokens(SequenceCondition):
    """Tokens (B, L, features) that are handed on as they are; a place of NaN is not there."""

    def __init__(self, name: str, features: int, length: int) -> None:
        super().__init__(name, 1, (), features, length)
        del self.layers, self.place, self.always


class DiffusersNetwork(Network):
    """A network of diffusers as it is, UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, Transformer2DModel or another that is
    called so: module(x, timestep, class_labels, encoder_hidden_states). See `Network` for the call; the package diffusers is needed.

    Args:
        shape: (C, *spatial), as in the configuration.
        conditions: {"label": {"kind": "label", "classes": K}}, handed on as class_labels, {"encoder_hidden_states": {"kind": "sequence",
            "features": W, "length": L}}, or both; None: what the configuration says.
        out_channels: of the result.
        kind: the class's name.
        config: its configuration, as its config.json holds it; what it leaves out has the class's own defaults.
        clock: what the class is told, of c, this network's own noise level: "step", c as it is (in float32, which the class would round in
            an integer); "whole_step", the nearest whole number, one sample at a time, for classes that look it up and take one for all;
            "sigma", exp(-c), c being half a log-SNR.
    """

    scales_input = False

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        kind: str = "UNet2DModel",
        config: Mapping[str, Any] | None = None,
        clock: str = "step",
    ) -> None:
        if clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
        plain = {name: value for name, value in (config or {}).items() if not name.startswith("_")}
        plain = {"in_channels": shape[0], "out_channels": shape[0] if out_channels is None else out_channels} | plain
        if plain["in_channels"] != shape[0]:
            raise ValueError(f"config says in_channels = {plain['in_channels']}, the data have {shape[0]}")
        super().__init__(shape, conditions, out_channels, {"kind": kind, "config": plain, "clock": clock})
        library = diffusers_library()
        made: Any = getattr(library, kind, None)
        if not (isinstance(made, type) and issubclass(made, library.ModelMixin)):
            raise ValueError(f"diffusers has no network {kind!r}")
        self.module: nn.Module = made.from_config(plain)  # type: ignore[attr-defined,unused-ignore]
        self.given = nn.ModuleList()
        for name, spec in self.conditions.items():
            if name == "label" and spec.get("kind") == "label":
                self.given.append(GivenLabel(name, spec["classes"]))
            elif name == "encoder_hidden_states" and spec.get("kind") == "sequence":
                self.given.append(GivenTokens(name, spec["features"], spec["length"]))
            else:
                raise ValueError(f"networks of diffusers are told 'label' and 'encoder_hidden_states', got condition {name!r}: {spec}")

    def null(self, name: str, value: Tensor) -> Tensor | None:
        """Rows for a label that is not given, of DiT, which learns one; None for what must be given."""
        return self.encoders[name].null(value) if name == "label" and self.options["kind"] == "DiTTransformer2DModel" else None

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        encoders = {encoder.name: encoder for encoder in self.given.children() if isinstance(encoder, Condition)}
        missing = sorted(set(encoders) - set(cond))
        if missing == ["label"] and self.options["kind"] == "DiTTransformer2DModel":
            cond = cond | {"label": encoders["label"].missing(len(x), x.device)}
        elif missing:
            raise ValueError(f"this network was trained with {', '.join(map(repr, missing))} given for every sample")
        told: dict[str, Any] = {}
        if "label" in encoders:
            told["class_labels"] = encoders["label"].fit(cond["label"])
        if "encoder_hidden_states" in encoders:
            tokens = encoders["encoder_hidden_states"].fit(cond["encoder_hidden_states"])
            there = ~torch.isnan(tokens).any(2)
            told["encoder_hidden_states"] = tokens.nan_to_num(0.0).to(x.dtype)
            told["encoder_attention_mask"] = there
        clock = self.options["clock"]
        if clock == "whole_step":
            steps = c.round().long()
            rows = [self._output(x[k : k + 1], steps[k], {name: value[k : k + 1] for name, value in told.items()}) for k in range(len(x))]
            return torch.cat(rows)
        return self._output(x, torch.exp(-c) if clock == "sigma" else c, told)

    def _output(self, x: Tensor, step: Tensor, told: Mapping[str, Any]) -> Tensor:
        output: Tensor = self.module(x, timestep=step, return_dict=False, **told)[0]
        return output
