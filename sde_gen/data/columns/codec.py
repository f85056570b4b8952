"""A table's columns as real features and back: what each column is taken for, by itself or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sde_gen.data.cell_text import text_of
from sde_gen.data.columns.gaps import GAPS, Gaps, kind_from
from sde_gen.data.columns.infer import as_asked
from sde_gen.data.columns.kinds import KINDS, Category, Kind
from sde_gen.data.transforms import TRANSFORMS, Chain

DROP = "drop"
VALID = "valid"
"""The condition that says which features of a row are there, where gaps are a condition."""
_SEED = 0
Asked = Mapping[str, Mapping[str, Any]]
"""Of columns by name what the user says of them: {"kind": ..., "transform": ..., options of the kind}."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column as it was read.

    values: (N,) float64, or words. missing: Boolean (N,); a number is then NaN and a word "".
    dtype: of a frame's column, the name of its type, to which samples are brought back; None for text.
    gap: what stands in a text table where a value is missing.
    """

    name: str
    values: np.ndarray
    missing: np.ndarray
    dtype: str | None = None
    gap: str = ""

    def subset(self, rows: np.ndarray) -> Column:
        """The column of these rows alone."""
        return replace(self, values=self.values[rows], missing=self.missing[rows])


@dataclass(frozen=True)
class Codec:
    """What the columns of a table are, and how they are real features (N, D) and columns again.

    names: of the columns in their order. kinds: of each. transforms: of each, the chain that the user asks for in the place of its kind's
    own, or None. dtypes, gaps: as `Column.dtype` and `Column.gap`. masked: of each, whether its gaps are a condition: its features are NaN
    where a value is missing.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    transforms: tuple[Chain | None, ...] = ()
    dtypes: tuple[str | None, ...] = ()
    gaps: tuple[str, ...] = ()
    masked: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "masked", self.masked or (False,) * len(self.kinds))

    @classmethod
    def fit(cls, columns: Sequence[Column], asked: Asked | None = None, gaps: str = GAPS[0]) -> tuple[Codec, list[str]]:
        """The codec of a table, and a line for each column: what it is taken for, and why.

        asked: see `read_asked`; columns that it does not name are inferred. Those with {"kind": "drop"} must be left out before.
        gaps: one of `GAPS`, what missing values are in columns of which `asked` does not say it.

        Raises ValueError for a column of which nothing is known or that its kind cannot hold.
        """
        asked, kinds, lines, transforms, masked = asked or {}, [], [], [], []
        rng = np.random.default_rng(_SEED)
        for column in columns:
            known = column.values[~column.missing]
            if not len(known):
                raise ValueError(f"column {column.name!r}: no value is known; {{{column.name}: drop}} in columns leaves it out")
            wanted = asked.get(column.name, {})
            words = column.values.dtype.kind != "f"
            told = bool(column.missing.any()) and wanted.get("missing", gaps) == "condition"
            masked.append(told)
            kind, why = as_asked(column.name, column.values if words and not told else known, wanted)
            if told:
                why += f"; {100 * column.missing.mean():.3g} % missing, which the condition {VALID!r} says"
            elif words and column.missing.any():
                why += f"; {100 * column.missing.mean():.3g} % missing, a word like the others"
            elif column.missing.any():
                kind = Gaps.around(kind, kind.encode(known, rng))
                why += f"; {100 * column.missing.mean():.3g} % missing, which is a value that can be sampled"
            chain = wanted.get("transform")
            transforms.append(None if chain is None else chain)
            kinds.append(kind)
            inner = kind.inner if isinstance(kind, Gaps) else kind
            shown = chain if chain is not None else inner.chains[inner.lead]
            form = f" ({inner.form.replace('_', '-')})" if isinstance(inner, Category) else ""
            lines.append(f"column    {column.name}: {inner.name}{form}, {' + '.join(shown) or 'standard'}: {why}")
        names, dtypes, marks = (tuple(values) for values in zip(*((c.name, c.dtype, c.gap) for c in columns), strict=True))
        return cls(names, tuple(kinds), tuple(transforms), dtypes, marks, tuple(masked)), lines

    @property
    def width(self) -> int:
        """How many features."""
        return sum(kind.width for kind in self.kinds)

    @property
    def labels(self) -> tuple[str, ...]:
        """The features' names."""
        return tuple(label for name, kind in zip(self.names, self.kinds, strict=True) for label in kind.labels(name))

    @property
    def chains(self) -> list[Chain]:
        """The transforms of each feature."""
        found: list[Chain] = []
        for kind, chain in zip(self.kinds, self.transforms or (None,) * len(self.kinds), strict=True):
            own = kind.chains
            if chain is not None:
                own = own[: kind.lead] + [chain] * (kind.width - kind.lead)
            found += own
        return found

    @property
    def breaks(self) -> list[list[float]]:
        """Where the density of each feature may jump."""
        return [places for kind in self.kinds for places in kind.breaks]

    def encode(self, columns: Sequence[Column], seed: int | Sequence[int] = _SEED) -> np.ndarray:
        """Features (N, D), float64, with the draws in cells that `seed` gives; NaN for the gaps of a column that is `masked`.

        Raises ValueError for values that the columns' kinds cannot hold.
        """
        rng = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), 1])
        parts = []
        for column, kind, masked in zip(columns, self.kinds, self.masked, strict=True):
            known = column.values if column.values.dtype.kind != "f" and not masked else column.values[~column.missing]
            bad = kind.strange(known)
            if bad.any():
                raise ValueError(f"column {column.name!r} holds {known[bad][0]!s}, which is no {kind.settings()['kind']} of this table")
            if masked:
                found = np.full((len(column.values), kind.width), np.nan)
                found[~column.missing] = kind.encode(known, rng)
                parts.append(found)
            elif isinstance(kind, Gaps):
                parts.append(kind.encode_apart(column.values, column.missing, rng))
            elif column.missing.any() and column.values.dtype.kind == "f":
                raise ValueError(f"column {column.name!r} has missing values, of which the table that it was learned from has none")
            else:
                parts.append(kind.encode(column.values, rng))
        return np.concatenate(parts, 1)

    def decode(self, features: np.ndarray, valid: np.ndarray | None = None) -> list[Column]:
        """The columns of any features (N, D), with gaps where features are NaN or not `valid`, Boolean (N, D)."""
        found = []
        features = features if valid is None else np.where(valid, features, np.nan)
        for name, kind, place, dtype, gap in zip(self.names, self.kinds, self.places, self.dtypes, self.gaps, strict=True):
            part = features[:, place].astype(np.float64)
            gone = np.asarray(np.isnan(part).any(1))
            values = kind.decode(np.where(gone[:, None], 0.5, part))
            missing = values == "" if values.dtype.kind == "U" else np.zeros(len(part), bool)
            missing = (kind.apart(part) if isinstance(kind, Gaps) else missing) | gone
            values = np.where(gone, "", values) if values.dtype.kind == "U" else values
            found.append(Column(name, values, missing, dtype, gap))
        return found

    @property
    def places(self) -> list[slice]:
        """The features of each column."""
        ends = np.cumsum([kind.width for kind in self.kinds]).tolist()
        return [slice(end - kind.width, end) for end, kind in zip(ends, self.kinds, strict=True)]

    def log_q(self, features: np.ndarray) -> np.ndarray:
        """log density of the draws that made features (N, D), (N,) nats: log p(features) less this bounds log P(row) from below.

        Of real numbers P is a density in the column's own units, of all else a probability. Entries that are NaN count for nothing: P is
        then that of the values that are there, given which these are.
        """
        parts = []
        for kind, place in zip(self.kinds, self.places, strict=True):
            part = features[:, place].astype(np.float64)
            gone = np.asarray(np.isnan(part).any(1))
            parts.append(np.where(gone, 0.0, kind.log_q(np.where(gone[:, None], 0.5, part))))
        return np.sum(parts, axis=0)

    def cells(self, features: np.ndarray) -> list[list[str]]:
        """The columns of features (N, D) as the cells of a text table."""
        return [cells_of(column) for column in self.decode(features)]

    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs, ready for JSON."""
        return {
            "names": list(self.names),
            "kinds": [kind.settings() for kind in self.kinds],
            "transforms": [None if chain is None else list(chain) for chain in self.transforms],
            "dtypes": list(self.dtypes),
            "gaps": list(self.gaps),
        } | ({"masked": list(self.masked)} if any(self.masked) else {})

    @classmethod
    def from_config(cls, config: Any) -> Codec:
        """The codec of `to_config`. ValueError for anything else."""
        try:
            names, kinds = tuple(map(str, config["names"])), tuple(kind_from(settings) for settings in config["kinds"])
            transforms = tuple(None if chain is None else tuple(map(str, chain)) for chain in config["transforms"])
            dtypes = tuple(None if dtype is None else str(dtype) for dtype in config["dtypes"])
            gaps = tuple(map(str, config["gaps"]))
            masked = tuple(map(bool, config.get("masked", [False] * len(names))))
            if len({len(names), len(kinds), len(transforms), len(dtypes), len(gaps), len(masked)}) > 1 or not names:
                raise ValueError("as many names, kinds, transforms, dtypes and gaps, at least one each, are needed")
            return cls(names, kinds, transforms, dtypes, gaps, masked)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(config)[:80]!r} is no codec of a table; what Codec.to_config gives is needed") from error


def cells_of(column: Column) -> list[str]:
    """A column as the cells of a text table."""
    texts = text_of(column.values, True) if column.values.dtype.kind == "i" else [str(value) for value in column.values.tolist()]
    return [column.gap if gone else text for text, gone in zip(texts, column.missing.tolist(), strict=True)]


def read_asked(name: str, asked: Any, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a YAML file or a dict says of columns, checked: {COLUMN: KIND} or {COLUMN: {"kind": KIND, "transform": NAMES,
    "missing": one of `GAPS`, options}}.

    name: of the table, for messages. columns: those of the table.

    Raises ValueError for anything else, an unknown column, kind or transform, in one line.
    """
    if not isinstance(asked, Mapping):
        raise ValueError(f"{name}: columns are {{COLUMN: KIND}} or {{COLUMN: {{kind: KIND, ...}}}}, got {type(asked).__name__}")
    found: dict[str, dict[str, Any]] = {}
    for key, value in asked.items():
        column = str(key)
        if column not in columns:
            listed = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
            raise ValueError(f"{name}: columns names {column!r}, which the table does not have; its columns are {listed}")
        given = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
        if given is None:
            raise ValueError(f"{name}: column {column!r}: {value!r}; a kind ({', '.join((*KINDS, DROP))}) or {{kind: ...}} is needed")
        if given.get("kind") not in (None, *KINDS, DROP):
            raise ValueError(f"{name}: column {column!r}: unknown kind {given['kind']!r}; choose from {', '.join((*KINDS, DROP))}")
        if given.get("missing", GAPS[0]) not in GAPS:
            raise ValueError(f"{name}: column {column!r}: missing {given['missing']!r}; {' or '.join(GAPS)} is allowed")
        if "transform" in given:
            given["transform"] = _chain(name, column, given["transform"])
        found[column] = given
    return found


def _chain(name: str, column: str, value: Any) -> Chain:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or any(one not in (*TRANSFORMS, "standard") for one in listed):
        allowed = ", ".join(("standard", *TRANSFORMS))
        raise ValueError(f"{name}: column {column!r}: transform {value!r}; one or a list of {allowed} is needed")
    return tuple(one for one in listed if one != "standard")
