"""Conditions: what a network is told beside the state, by three ports. One file and one registry line each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.captions import texts_of
from ..registry import Registry, lookup
from .base import RESERVED, Condition, standardised
from .label import FADE, Label
from .maps import Map, Mask
from .numbers import Numbers
from .sequence import Sequence as SequenceCondition
from .text import Text, TextTransformer
from .tokenizer import Tokenizer
from .valid import TellsValid, Valid, ValidFeatures, valid_entries

__all__ = [
    "CONDITIONS",
    "FADE",
    "RESERVED",
    "Condition",
    "Label",
    "Map",
    "Mask",
    "Numbers",
    "SequenceCondition",
    "TellsValid",
    "Text",
    "TextTransformer",
    "Tokenizer",
    "Valid",
    "ValidFeatures",
    "fit_condition",
    "make_condition",
    "valid_entries",
    "valid_of",
]

CONDITIONS: Registry[Any] = Registry(
    {
        "label": Label,
        "numbers": Numbers,
        "sequence": SequenceCondition,
        "map": Map,
        "mask": Mask,
        "valid": Valid,
        "valid_features": ValidFeatures,
        "text": Text,
    },
    aliases={
        "caption": "text",
        "category": "label",
        "number": "numbers",
        "vector": "numbers",
        "image": "map",
        "field": "map",
        "set": "sequence",
    },
)
"""The kinds of conditions by name, each a class of (name, width, spatial, options of its own)."""
MOST_CLASSES = 100_000
"""Of a label that is told from its values: more are numbers or identities, and a vector for each would fill the memory."""


def make_condition(name: str, spec: Mapping[str, Any], width: int, spatial: Sequence[int]) -> Condition:
    """The encoder of the condition `name`.

    spec: {"kind": a key of CONDITIONS, **options}.
    width: of its vectors or tokens.
    spatial: the data's grid; () for vectors.

    Raises ValueError for an unknown kind or option, or values that are not allowed.
    """
    options = dict(spec)
    kind = lookup(CONDITIONS, "kind of condition", options.pop("kind", None))
    known = list(inspect.signature(kind).parameters)[3:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)} of condition {name!r} ({kind.kind}); known: {', '.join(known)}")
    try:
        made: Condition = kind(name, width, tuple(spatial), **options)
    except TypeError as error:
        raise ValueError(f"condition {name!r}: {error}") from error
    return made


def fit_condition(
    name: str,
    values: Tensor,
    spatial: Sequence[int],
    kind: str | Mapping[str, Any] | None = None,
    names: Sequence[str | int] | None = None,
) -> dict[str, Any]:
    """The spec of a condition with these values (N, *), its scale learned from them.

    spatial: the data's grid; () for vectors.
    kind: a key of CONDITIONS. None: what type and shape say: integers (N,) are labels, numbers (N,) or (N, K) numbers, Booleans over
        space a mask ("valid" where it is called so, and Booleans (N, K) of vectors then "valid_features"), (N, C, *grid) with as many
        axes as the data a map, and (N, L, K) otherwise a sequence.
        A mapping {"kind": ..., **options} sets options of the kind too. Texts (`data.captions.text_tensor`) have to be called "text"; their
        words are learned here, or are those of the BERT vocab.txt that the option "vocabulary" names.
    names: of a label, the data's own words for the classes 0, 1, ...

    Raises ValueError for values that are none of these.
    """
    if isinstance(kind, Mapping):
        options = dict(kind)
        chosen = options.pop("kind", None)
        if chosen is not None and lookup(CONDITIONS, "kind of condition", chosen) is Text:
            return _fit_text(name, values, options)
        return fit_condition(name, values, spatial, chosen, names) | options
    rank, over_space = len(spatial), values.ndim == 2 + len(spatial) and len(spatial) > 0
    if kind is None:
        whole = not (values.is_floating_point() or values.is_complex())
        if values.ndim == 1 and whole:
            kind = "label"
        elif values.ndim == 2 and values.dtype == torch.bool and name == Valid.kind and rank == 0:
            kind = ValidFeatures.kind
        elif values.ndim <= 2:
            kind = "numbers"
        elif over_space:
            kind = "map" if values.dtype != torch.bool else "valid" if name == Valid.kind else "mask"
        elif values.ndim == 3:
            kind = "sequence"
        else:
            allowed = "(N,), (N, K), (N, L, K)" + (f" or (N, C, {rank} axes of space)" if rank else "")
            raise ValueError(f"condition {name!r} has values of shape {tuple(values.shape)}; {allowed} are allowed")
    kind = lookup(CONDITIONS, "kind of condition", kind).kind
    if kind == "label":
        if values.ndim != 1 or values.is_floating_point():
            raise ValueError(f"condition {name!r} is a label: integers (N,) are needed, got {values.dtype} of shape {tuple(values.shape)}")
        classes = int(values.max()) + 1 if names is None else len(names)
        if classes > MOST_CLASSES:
            raise ValueError(
                f"condition {name!r} has {classes:,} classes, 0 .. {classes - 1:,}; at most {MOST_CLASSES:,} are allowed (integers (N,) "
                "are classes: give numbers as floats, or kind 'numbers')"
            )
        return {"kind": kind, "classes": classes, "fade": FADE} | ({} if names is None else {"names": list(names)})
    if kind == "text":
        return _fit_text(name, values, {})
    if kind == ValidFeatures.kind and values.ndim == 2:
        return {"kind": kind, "size": values.shape[1], "gaps": (values == 0).any(0).nonzero()[:, 0].tolist()}
    if kind == "numbers" and values.ndim in (1, 2):
        mean, std = standardised(values if values.ndim == 2 else values[:, None])
        return {"kind": kind, "size": len(mean), "mean": mean, "std": std}
    if kind == "sequence" and values.ndim == 3:
        mean, std = standardised(values, 2)
        return {"kind": kind, "features": len(mean), "length": values.shape[1], "mean": mean, "std": std}
    if kind in ("map", "mask", "valid") and over_space:
        shape = {"kind": kind, "channels": values.shape[1], "grid": list(values.shape[2:])}
        if kind != "map":
            return shape
        mean, std = standardised(values)
        return shape | {"mean": mean, "std": std}
    raise ValueError(f"condition {name!r} of shape {tuple(values.shape)} is no {kind} for data of {rank} axes of space")


def _fit_text(name: str, values: Tensor, options: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of captions, with the tokenizer of their words, or of a vocabulary's pieces."""
    own = {key: options[key] for key in ("buckets", "length") if key in options}
    try:
        texts = texts_of(values)
        if "vocabulary" in options:
            words = Tokenizer.read_vocabulary(options["vocabulary"])
            longest = max((len(Tokenizer(words, pieces=True).split(text)) for text in texts), default=0)
            tokenizer = Tokenizer(words, pieces=True, **{"length": min(64, max(16, longest))} | own)
        else:
            tokenizer = Tokenizer.fit(texts, **own)
    except ValueError as error:
        raise ValueError(f"condition {name!r}: {error}") from error
    known = {"words": tokenizer.words, "buckets": tokenizer.buckets, "length": tokenizer.length, "pieces": tokenizer.pieces}
    return {"kind": Text.kind} | known | {key: value for key, value in options.items() if key not in ("vocabulary", *own)}


def valid_of(specs: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> Any:
    """Of conditions' specs and values by name the values that tell which entries are data; None where no condition does."""
    return next((values[name] for name, spec in specs.items() if issubclass(CONDITIONS[spec["kind"]], TellsValid)), None)
