"""Every Python block of the README and of docs/ runs alone, as it is printed, with little training; so do the notebook's cells in order."""

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sde_gen
from sde_gen import metrics
from sde_gen.training import TrainSettings, build_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
]
NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
SMALL = {"mlp": {"width": 16, "depth": 1}, "unet": {"width": 8, "multipliers": [1], "attention": []}}
SMALL["unet2d"] = SMALL["unet"] | {"groups": 4}
SLOWEST_IMPORT = 0.4


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where `runs/digits-vp`, `runs/mnist-vp` and `runs/cifar10-vp` hold networks, as after the commands of the pages."""
    directory = tmp_path_factory.mktemp("docs")
    data = sde_gen.load_dataset("digits").train
    pictures = {"mnist-vp": 255 * torch.rand(64, 1, 28, 28), "cifar10-vp": 255 * torch.rand(64, 3, 32, 32)}
    for name, items in ({"digits-vp": data} | pictures).items():
        classes = 10 if name == "cifar10-vp" else None
        model = build_model(items, network="mlp", network_options=SMALL["mlp"], conditions=classes).eval()
        sde_gen.save(model, directory / "runs" / name / "checkpoint")
    return directory


@pytest.fixture
def little(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that directory, with short training and fitting of small networks; their arguments are checked all the same."""
    train, fit_grid, train_classifier = sde_gen.train, sde_gen.fit_grid, sde_gen.train_classifier

    @functools.wraps(train)
    def briefly(data: Any, *, network: Any = None, network_options: Any = None, steps: int = 2000, **settings: Any) -> Any:
        assert 100 <= TrainSettings(steps=steps, batch=settings.pop("batch", 128)).steps <= 3000
        shape = data.shape if isinstance(data, sde_gen.Dataset) else np.shape(data)[1:]
        network = network or ("mlp" if len(shape) == 1 else "unet")
        size = SMALL[network] if isinstance(network, str) else None
        return train(data, network=network, network_options=size, steps=3, batch=16, device="cpu", progress=False, **settings)

    @functools.wraps(fit_grid)
    def roughly(model: Any, solver: str, steps: int, **settings: Any) -> Any:
        return fit_grid(model, solver, steps, samples=6, iterations=1, **settings)

    monkeypatch.chdir(small_run)
    monkeypatch.setattr(sde_gen, "train", briefly)
    monkeypatch.setattr(sde_gen, "fit_grid", roughly)

    @functools.wraps(train_classifier)
    def shortly(*given: Any, steps: int, **settings: Any) -> Any:
        assert 100 <= steps <= 3000
        return train_classifier(*given, steps=3, **settings)

    monkeypatch.setattr(sde_gen, "train_classifier", shortly)
    distill = sde_gen.distill

    @functools.wraps(distill)
    def in_short(model: Any, *, max_seconds: float | None = None, **settings: Any) -> Any:
        assert max_seconds is None or 60 <= max_seconds <= 600
        return distill(model, steps=3, trajectories=8, progress=False, device="cpu", **settings)

    monkeypatch.setattr(sde_gen, "distill", in_short)
    monkeypatch.setattr(metrics, "cached_features", lambda data, directory: metrics.FeatureNet(data.shape, data.classes))
    registries = [(registry, dict(registry)) for registry in (sde_gen.sdes.SDES, sde_gen.networks.NETWORKS)]
    yield
    for registry, before in registries:  # the blocks register classes of their own
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_runs_alone(code: str, little: None) -> None:
    assert "import" in code
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_each_page_has_an_example() -> None:
    for page in PAGES:
        if page.stem not in ("gallery", "index"):
            assert "```python\n" in page.read_text(encoding="utf-8"), page.name


def test_the_tour_runs(little: None) -> None:
    scope: dict[str, Any] = {"__name__": "tour"}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    assert isinstance(scope["out"], sde_gen.Samples) and bool(torch.isfinite(scope["ll"].log_prob).all())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.suffix != ".png" or file.stat().st_size < 300_000, target
        assert not anchor or anchor in anchors(file), target


def test_every_solver_and_process_is_documented() -> None:
    page = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    for name in (*sde_gen.sdes.SDES, *sde_gen.solvers.SOLVERS):
        assert f"`{name}`" in page, name


def test_public_names_have_docstrings() -> None:
    for name in sde_gen.__all__:
        assert len(inspect.getdoc(getattr(sde_gen, name)) or "") > 20, name


def test_the_import_is_quick(tmp_path: Path) -> None:
    # Processor time, so that a busy machine does not count; the least of a few tries, so that its caches do not either; compiled once, as
    # it is for a user, whatever this environment says of that.
    code = "import os, torch; a = os.times(); import sde_gen; b = os.times(); print(b.user - a.user)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    seconds: list[float] = []
    while not seconds or (min(seconds) > SLOWEST_IMPORT and len(seconds) < 5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
        seconds.append(float(done.stdout))
    assert min(seconds) <= SLOWEST_IMPORT, seconds
