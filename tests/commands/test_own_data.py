"""The user's own files through the command line, and the example configurations at small size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toys import TINY_RUN, Command

import sde_gen
from sde_gen.commands.config import read_config, resolve
from sde_gen.commands.recipes import RECIPES, SIGNALS, VOLUMES, shape_recipe
from sde_gen.data.toys import SINES_CYCLES, blob
from sde_gen.metrics import features
from sde_gen.training import read_extra

RNG = np.random.default_rng(0)


def table(root: Path) -> list[str]:
    rows = [f"{a},{'north' if a < 0 else 'south'},{b}" for a, b in RNG.normal(size=(80, 2))]
    (root / "My table.csv").write_text("a,where,b\n" + "\n".join(rows))
    return ["My table.csv", "--label-column", "where", "--labels"]


def pictures(root: Path) -> list[str]:
    for i in range(80):
        (root / "faces" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(256, size=(9 + i % 3, 8), dtype=np.uint8)).save(root / "faces" / f"{i % 2}" / f"{i}.png")
    return ["faces/", "--image-size", "6"]


def array(root: Path) -> list[str]:
    np.save(root / "fields.npy", RNG.normal(size=(80, 3, 6, 5)))
    return ["fields.npy"]


def one_class(root: Path) -> list[str]:
    np.savez(root / "one.npz", x=RNG.normal(size=(80, 1, 6, 5)), y=np.zeros(80, int))
    return ["one.npz", "--labels"]


def unlabelled_held_out(root: Path) -> list[str]:
    x = RNG.normal(size=(100, 1, 6, 5))
    np.savez(root / "part.npz", x=x[:80], y=np.arange(80) % 2, x_test=x[80:])
    return ["part.npz", "--labels"]


CASES = [
    (one_class, "one.npz", "all training items are of one class: there are no features"),
    (unlabelled_held_out, "part.npz", "the held-out part has no labels: a network that is trained on labels"),
    (table, "My table.csv", "2 columns: a, b"),
    (pictures, "faces", "80 grey images of 6 x 6"),
    (array, "fields.npy", "80 images of 3 channels, 6 x 5 (axes NCHW; float64, continuous)"),
]


@pytest.mark.parametrize(("make", "name", "note"), CASES)
def test_own_files_train_and_sample(  # type: ignore[no-untyped-def]
    make, name: str, note: str, sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(features._SETTINGS, "least_steps", 20)  # how well it tells classes apart is not the claim
    arguments = ["run", *TINY_RUN, "--solver", "ddim", "--data", *make(tmp_path)]
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, [])
    assert any(line.startswith("data      ") and note in line for line in out)
    run = tmp_path / "runs" / f"{name}-vp"
    items = json.loads((run / "history.json").read_text())["items"]
    assert ("held_out" in items) == (make is not unlabelled_held_out)
    assert (run / "samples.png").stat().st_size > 0 and "ddim" in json.loads((run / "metrics.json").read_text())["solvers"]
    monkeypatch.setattr("sde_gen.commands.cli._report", lambda directory: None)  # the page is there
    code, out, err = sde_gen_command(*arguments)
    assert (code, err) == (0, []) and any(line.startswith("reusing") for line in out)


def test_a_network_is_never_taken_for_one_of_other_data(sde_gen_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(rows: np.ndarray) -> None:
        np.save(tmp_path / "mine.npy", rows.astype(np.float32))

    rows = RNG.normal(size=(80, 2))
    write(rows)
    arguments, run = ["run", *TINY_RUN, "--solver", "ddim", "--data", "mine.npy"], tmp_path / "runs" / "mine.npy-vp"
    assert sde_gen_command(*arguments)[0] == 0
    code, out, err = sde_gen_command(*arguments)
    assert code == 0 and not any("other data" in line for line in (*out, *err)), "the same file"
    trained = json.loads((run / "metrics.json").read_text())["solvers"]["ddim"]["data"]
    assert trained["items"] == 72 and trained["shape"] == [2] and len(trained["sha256"]) == 64

    for changed, message in ((rows[:-10], "(72 items, now 63)"), (rows + 1, "(72 items, now 72, of other values)")):
        write(changed)
        code, out, err = sde_gen_command(*arguments)
        assert code == 0 and sum("trained on other data" in line and message in line and "--retrain" in line for line in out) == 1, out
        assert "ddim: measured against other data" in (run / "report.html").read_text()
    code, out, err = sde_gen_command(*arguments, "--train-steps", "13")
    assert code == 2 and len(err) == 1 and "of other values), and its training cannot go on with them" in err[0] and "--retrain" in err[0]
    assert read_extra(run / "checkpoint")["steps"] == 12 and read_extra(run / "checkpoint")["data"] == trained
    code, out, err = sde_gen_command("doctor", "--run", str(run), "--samples", "0")
    assert code == 1 and any(line.startswith("warning   changed data: ") for line in out)

    write(np.concatenate((rows, rows), axis=1))
    for line in (arguments, ["doctor", "--run", str(run)]):
        code, out, err = sde_gen_command(*line)
        assert code == 2 and len(err) == 1 and "(shape [2], now [4])" in err[0], err
    (run / "likelihood").mkdir()
    (run / "likelihood" / "likelihood.json").write_text("{}")
    with monkeypatch.context() as patch:  # before the first save the old network is there, and so is what was made of it
        patch.setattr("sde_gen.training.trainer.Trainer.advance", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sde_gen_command(*arguments, "--retrain")
    for part in ("likelihood", "solvers", "metrics.json", "history.json", "doctor.json"):
        assert (run / part).exists(), part
    assert sde_gen_command(*arguments, "--retrain")[0] == 0
    assert not (run / "likelihood").exists() and not (run / "doctor.json").exists(), "what the other network made"
    assert "other data" not in (run / "report.html").read_text()


def test_own_files_start_from_the_recipe_of_their_shape(sde_gen_command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", RNG.integers(256, size=(40, 1, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "large.npy", RNG.integers(256, size=(40, 1, 20, 20), dtype=np.uint8))
    for name, like in (("small.npy", "digits"), ("large.npy", "mnist")):
        code, out, err = sde_gen_command("run", "--dry-run", "--data", name)
        assert (code, err) == (0, [])
        found = yaml.safe_load("\n".join(out))
        assert found["model"]["options"] == RECIPES[like]["model"]["options"]
        assert found["training"]["steps"] == RECIPES[like]["training"]["steps"]
    assert shape_recipe((5,)) == RECIPES["table"] and shape_recipe((2, 30)) == SIGNALS
    assert shape_recipe((1, 4, 4, 4)) == VOLUMES and shape_recipe(None) == {}
    code, out, err = sde_gen_command("run", "--dry-run", "--data", "small.npy", "--set", "model.network=mlp", "--train-steps", "7")
    assert code == 0 and yaml.safe_load("\n".join(out))["training"]["steps"] == 7


def test_units_far_from_one_come_back(tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", 100 + 4900 * RNG.random((400, 2)))
    data = sde_gen.load_dataset(tmp_path / "far.npy")
    model = sde_gen.train(
        data.train, network="mlp", steps=150, batch=64, network_options={"width": 32, "depth": 1}, progress=False, device="cpu"
    )
    x = sde_gen.sample(model, (200, 2), "ddim", steps=10, progress=False).x
    assert 1500 < float(x.mean()) < 3500 and 700 < float(x.std()) < 2500


def test_signals_of_the_true_frequency() -> None:
    """The claim of experiments/configs/signals.yaml, at small size."""
    data = sde_gen.load_dataset("sines")
    options = {"width": 64, "depth": 2}
    model = sde_gen.train(data.train, network="mlp", steps=300, batch=64, lr=3e-3, network_options=options, progress=False, device="cpu")
    x = sde_gen.sample(model, (400, *data.shape), "heun", steps=12, progress=False).x
    peak = torch.fft.rfft(x[:, 0]).abs().argmax(1)
    assert float((peak == SINES_CYCLES).float().mean()) >= 0.95
    phase = torch.fft.rfft(x[:, 0])[:, SINES_CYCLES].angle()
    assert abs(float(phase.cos().mean())) < 0.25 and abs(float(phase.sin().mean())) < 0.25, "every phase"


def test_the_table_keeps_its_correlations_and_its_two_modes() -> None:
    """The claim of experiments/configs/table.yaml, at small size."""
    data = sde_gen.load_dataset("table")
    assert data.test is not None
    options = {"width": 64, "depth": 2}
    model = sde_gen.train(data.train, network="mlp", steps=400, batch=256, lr=3e-3, network_options=options, progress=False, device="cpu")
    x = sde_gen.sample(model, (2000, 4), "heun", steps=18, progress=False).x
    torch.testing.assert_close(torch.corrcoef(x.T), torch.corrcoef(data.test.T), atol=0.1, rtol=0)
    torch.testing.assert_close(x.std(0), data.test.std(0), atol=0, rtol=0.15)
    age = x[:, 3]
    assert 0.4 < float((age < 40).float().mean()) < 0.6 and float(((age > 33) & (age < 47)).float().mean()) < 0.05


def away_from_a_ball(volumes: torch.Tensor) -> torch.Tensor:
    """Relative error (N,) of the soft ball that fits each volume best, by least squares over its centre."""
    x = volumes.double()
    mass = x.clamp_min(0)[:, 0] ** 2
    place, total = torch.arange(x.shape[-1]).double(), mass.sum((1, 2, 3)).clamp_min(1e-9)
    centres = torch.stack([(mass.sum(other) * place).sum(1) / total for other in ((2, 3), (1, 3), (1, 2))], dim=1).requires_grad_()
    search = torch.optim.LBFGS([centres], max_iter=60, line_search_fn="strong_wolfe")

    def misfit() -> torch.Tensor:
        search.zero_grad()
        loss = (blob(centres) - x).square().sum()
        loss.backward()
        return loss

    search.step(misfit)  # type: ignore[arg-type]
    ball = blob(centres.detach())
    return (x - ball).flatten(1).norm(dim=1) / ball.flatten(1).norm(dim=1)


def test_volumes_are_soft_balls() -> None:
    """The claim of experiments/configs/blobs3d.yaml, at small size."""
    config = resolve(read_config(Path(__file__).parents[2] / "experiments" / "configs" / "blobs3d.yaml"))
    data = sde_gen.load_dataset("blobs3d")
    assert data.test is not None and float(away_from_a_ball(data.test[:20]).max()) < 1e-6
    noise = torch.randn(20, *data.shape, generator=torch.Generator().manual_seed(0))
    assert float(away_from_a_ball(data.test[:20] + 0.1 * noise).min()) > 0.1
    model = sde_gen.train(
        data.train,
        network="unet",
        steps=120,
        batch=12,
        lr=3e-3,
        warmup=30,
        network_options=config.model.options | {"width": 24},
        prediction=config.model.prediction,
        weighting=config.training.weighting,
        progress=False,
        device="cpu",
    )
    x = sde_gen.sample(model, (16, *data.shape), "heun", steps=12, progress=False).x
    error = away_from_a_ball(x)
    assert float(error.median()) < 0.2 and float(error.max()) < 0.4, error
    peak = x.flatten(1).argmax(1)
    assert len(set(peak.tolist())) > 8, "at different places"


def test_the_examples_are_there() -> None:
    folder = Path(__file__).parents[2] / "experiments" / "configs"
    examples = [("signals", "sines", 2), ("table", "table", 1), ("blobs3d", "blobs3d", 4)]
    for file, name, rank in (*examples, ("spectrograms", "spectrograms", 3), ("volume", "volumes", 4)):
        config = resolve(read_config(folder / f"{file}.yaml"))
        assert config.data.name == name and len(sde_gen.load_dataset(name).shape) == rank
