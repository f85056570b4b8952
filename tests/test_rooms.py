"""The rooms of the package: imports go down one list, never up, and a registry is filled in the room where it stands."""

from __future__ import annotations

import ast
from pathlib import Path

import sde_gen

PACKAGE = Path(sde_gen.__file__).parent
FLOORS = [
    *(
        ("commands",),
        ("diagnostics",),
        ("distillation",),
        ("training",),
        ("inverse",),
        ("guidance",),
        ("external",),
        ("pairs",),
        ("latent",),
        ("tokens",),
    ),
    *(("exact",), ("sampling",), ("likelihood",), ("solvers",), ("discrete",), ("models",), ("sdes",), ("networks",), ("conditions",)),
    ("data", "metrics", "report"),
]
"""From the top floor down; what stands beside one another does not import one another. Files of the package itself are the ground."""
HEIGHT = {room: len(FLOORS) - k for k, rooms in enumerate(FLOORS) for room in rooms}
REGISTRIES = (
    "NETWORKS",
    "SDES",
    "CLOCKS",
    "PREDICTIONS",
    "SOLVERS",
    "GRIDS",
    "DIVERGENCES",
    "BETAS",
    "OBJECTIVES",
    "WEIGHTINGS",
    "DATASETS",
    "CONDITIONS",
    "METHODS",
)


def files() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def room(parts: tuple[str, ...]) -> str:
    """The room of a module: "" for the ground."""
    return parts[0] if len(parts) > 1 or (PACKAGE / parts[0]).is_dir() else ""


def imported(path: Path) -> list[tuple[str, ...]]:
    """The modules of this package that a file imports, wherever in it, as paths from the package on."""
    here = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [name.name.split(".") for name in node.names if name.name.split(".")[0] == "sde_gen"]
            found += [tuple(target[1:]) for target in targets]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = [*here[: len(here) - (node.level - 1)], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "sde_gen":
                base = (node.module or "").split(".")[1:]
            else:
                continue
            base = [part for part in base if part]
            found += [tuple(base)] if base else [(name.name,) for name in node.names]
    return found


def test_every_folder_is_a_room_of_the_list():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(HEIGHT)


def test_imports_go_down():
    upward = []
    for path in files():
        mine = room(path.relative_to(PACKAGE).with_suffix("").parts)
        for target in imported(path):
            theirs = room(target) if target else "the package itself"
            if theirs != mine and HEIGHT.get(theirs, 0 if theirs == "" else 99) >= HEIGHT.get(mine, 0) and (mine or theirs):
                upward.append(f"{path.relative_to(PACKAGE)} imports {'.'.join(target) or 'sde_gen'}")
    assert not upward, "\n".join(upward)


def test_a_registry_is_filled_where_it_stands():
    strangers = []
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {name.id for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign) for name in names_set(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    name = target.value.id if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) else ""
                    if name in REGISTRIES and name not in own:
                        strangers.append(f"{path.relative_to(PACKAGE)} fills {name}")
    assert not strangers, "\n".join(strangers)


def names_set(node: ast.Assign | ast.AnnAssign) -> list[ast.Name]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in targets if isinstance(target, ast.Name)]
