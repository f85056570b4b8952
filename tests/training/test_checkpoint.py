import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sde_gen
from sde_gen import CheckpointError, ScoreModel
from sde_gen.networks import NETWORKS, make_network
from sde_gen.sdes import SDES, make_sde
from sde_gen.training import build_model, read_extra

SMALL = {"width": 32, "depth": 2}


def model(sde: str = "vp", seed: int = 0) -> ScoreModel:
    data = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 5 + 2
    made = build_model(data, sde, "mlp", network_options=SMALL, prior="matched", seed=seed)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def assert_same(one: ScoreModel, other: ScoreModel) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    for t in (0.1, 0.9):
        assert torch.equal(one.score(x, t), other.score(x, t))
    assert torch.equal(one.normalizer.decode(x), other.normalizer.decode(x))
    assert torch.equal(one.prior.log_prob(x), other.prior.log_prob(x))
    assert torch.equal(one.prior.from_noise(x), other.prior.from_noise(x))


@pytest.mark.parametrize("name", SDES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    before = model(name)
    after = sde_gen.load(sde_gen.save(before, tmp_path / "deep" / "checkpoint"))
    assert_same(before, after)
    assert repr(after.sde) == repr(before.sde)
    assert not after.training and not any(p.requires_grad for p in after.parameters())


def test_variances_instead_of_a_covariance_round_trip(tmp_path: Path) -> None:
    before = model()
    before.moments = sde_gen.Moments(torch.ones(3), variance=torch.tensor([1.0, 2.0, 3.0]))
    assert_same(before, sde_gen.load(sde_gen.save(before, tmp_path / "checkpoint")))


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"diffusers"}))  # see external/test_diffusers.py
def test_every_network_is_rebuilt(name: str, tmp_path: Path) -> None:
    network = make_network(name, (1, 8, 8), conditions=3).eval()
    before = ScoreModel(network, make_sde("vp"), "edm", "half_log_snr", data_std=0.5)
    after = sde_gen.load(sde_gen.save(before, tmp_path / "checkpoint"))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.denoise(x, 0.5), after.denoise(x, 0.5))


def test_averaged_or_last_weights(tmp_path: Path) -> None:
    raw, averaged = model(seed=0), model(seed=1)
    assert isinstance(averaged.network, nn.Module)
    sde_gen.save(raw, tmp_path / "both", ema=averaged.network, extra={"step": 3})
    assert_same(sde_gen.load(tmp_path / "both"), raw.with_network(averaged.network))
    assert_same(sde_gen.load(tmp_path / "both", ema=False), raw)
    assert read_extra(tmp_path / "both") == {"step": 3}


def test_a_second_save_replaces_the_first_and_leaves_nothing_else(tmp_path: Path) -> None:
    sde_gen.save(model(seed=0), tmp_path / "checkpoint")
    sde_gen.save(model(seed=1), tmp_path / "checkpoint")
    assert_same(sde_gen.load(tmp_path / "checkpoint"), model(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sde_gen.save(model(seed=0), tmp_path / "checkpoint")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sde_gen.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space"):
        sde_gen.save(model(seed=1), tmp_path / "checkpoint")
    assert_same(sde_gen.load(tmp_path / "checkpoint"), model(seed=0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


class OwnNetwork(nn.Module):
    """A network as a user writes one: no base class of ours."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.options = {"width": width}
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, x: torch.Tensor, c: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat((x, c[:, None]), 1))


class FlowMatching(sde_gen.SDE):
    """README's own recipe."""

    def marginal(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 - t, t.clone()


def own_model() -> ScoreModel:
    torch.manual_seed(0)
    return build_model(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), FlowMatching(), OwnNetwork(12)).eval()


def test_a_network_and_an_sde_of_ones_own_are_saved_and_given_to_load(tmp_path: Path) -> None:
    before, path = own_model(), tmp_path / "checkpoint"
    sde_gen.save(before, path)
    assert_same(before, sde_gen.load(path, network=OwnNetwork(12), sde=FlowMatching()))
    with pytest.raises(CheckpointError, match=r"an SDE of class FlowMatching, which is not registered: give load\(sde=...\) one, or call"):
        sde_gen.load(path, network=OwnNetwork(12))
    with pytest.raises(CheckpointError, match=r"a network of class OwnNetwork.*sde_gen.register_network\('ownnetwork', OwnNetwork\) first"):
        sde_gen.load(path, sde=FlowMatching())
    with pytest.raises(CheckpointError, match=r"network.layers.0.weight is of shape \(12, 4\), not \(8, 4\)"):
        sde_gen.load(path, network=OwnNetwork(8), sde=FlowMatching())


def test_registered_classes_are_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (NETWORKS, SDES):
        for name, kind in list(registry.items()):
            monkeypatch.setitem(registry, name, kind)  # so that what follows is undone
    monkeypatch.setitem(NETWORKS, "own", OwnNetwork)
    monkeypatch.setitem(SDES, "flow matching", FlowMatching)
    sde_gen.register_network("own", OwnNetwork)
    sde_gen.register_sde("flow matching", FlowMatching)
    before = own_model()
    assert_same(before, sde_gen.load(sde_gen.save(before, tmp_path / "checkpoint")))
    for register, kind, message in (
        (sde_gen.register_network, nn.Linear, "network 'own' is registered already, as OwnNetwork"),
        (sde_gen.register_sde, sde_gen.VPSDE, "SDE 'own' is registered already, as FlowMatching"),
    ):
        monkeypatch.setitem(SDES, "own", FlowMatching)
        with pytest.raises(ValueError, match=message):
            register("own", kind)
        with pytest.raises(TypeError, match="kind must be a class of"):
            register("other", int)
    with pytest.raises(ValueError, match="make it yourself and give the object"):
        make_network("own", (3,))


def test_the_checkpoint_of_a_run_directory_is_found(tmp_path: Path) -> None:
    sde_gen.save(model(), tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "config.yaml").write_text("")
    assert_same(sde_gen.load(tmp_path / "run"), model())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        sde_gen.load(tmp_path)


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        options = {"activation": torch.tanh}  # noqa: RUF012

    for network, settings, message in (
        (lambda x, c: x, {}, "cannot save a network that is a function: make it a torch.nn.Module"),
        (nn.Linear(2, 2), {"clock": lambda sde, t: t}, "cannot save a clock that is a function: register it"),
        (nn.Linear(2, 2), {"prediction": lambda sde, t, s: (t, t)}, r"register it, sde_gen.models.score.PREDICTIONS\['name'\] = it"),
        (Odd(2, 2), {}, "cannot save the settings of this network"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            sde_gen.save(ScoreModel(network, make_sde("vp"), **settings), tmp_path / "checkpoint")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def flat(path: Path) -> Path:
    """The checkpoint as it was written before there were versions and sums of the content."""
    for file in (path / "00000001").iterdir():
        file.rename(path / file.name)
    (path / "00000001").rmdir()
    (path / "manifest.json").unlink()
    return path


def test_a_save_over_a_checkpoint_without_versions_leaves_a_version_alone(tmp_path: Path) -> None:
    path = flat(sde_gen.save(model(seed=0), tmp_path / "checkpoint"))
    sde_gen.save(model(seed=1), path)
    assert_same(sde_gen.load(path), model(seed=1))
    assert [entry.name for entry in path.iterdir()] == ["00000001"]


def break_weights(path: Path) -> None:
    content = (path / "weights.safetensors").read_bytes()
    (path / "weights.safetensors").write_bytes(content[: len(content) // 2])


def break_shape(path: Path) -> None:
    about = json.loads((path / "model.json").read_text())
    about["network"]["options"]["width"] = 48
    (path / "model.json").write_text(json.dumps(about))


def break_sde(path: Path) -> None:
    about = json.loads((path / "model.json").read_text())
    about["sde"]["name"] = "other"
    (path / "model.json").write_text(json.dumps(about))


BREAKS = {
    "no such directory": lambda path: path.rename(path.with_name("gone")),
    "no weights": lambda path: (path / "weights.safetensors").unlink(),
    "no description": lambda path: (path / "model.json").unlink(),
    "truncated weights": break_weights,
    "empty weights": lambda path: (path / "weights.safetensors").write_bytes(b""),
    "truncated description": lambda path: (path / "model.json").write_text('{"format": 1,'),
    "a description that is a list": lambda path: (path / "model.json").write_text("[]"),
    "another format": lambda path: (path / "model.json").write_text('{"format": 99}'),
    "another shape": break_shape,
    "an unknown sde": break_sde,
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_damaged_checkpoint_is_one_clear_line(fault: str, tmp_path: Path) -> None:
    path = flat(sde_gen.save(model(), tmp_path / "checkpoint"))
    assert_same(sde_gen.load(path), model())
    BREAKS[fault](path)
    with pytest.raises(CheckpointError) as caught:
        sde_gen.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_load_could_not_rebuild_is_said_by_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = nn.Linear(width, 3)

        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    monkeypatch.setitem(NETWORKS, "needs", Needs)
    with pytest.raises(CheckpointError, match=r"could not rebuild Needs\(\*\*options\): missing .*'width'; give it an attribute `options`"):
        sde_gen.save(ScoreModel(Needs(3), make_sde("vp")), tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_here_is_not_the_checkpoints_fault(tmp_path: Path) -> None:
    sde_gen.save(model(), tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        sde_gen.load(tmp_path / "checkpoint", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' was asked for, and PyTorch sees no CUDA device here"):
            sde_gen.load(tmp_path / "checkpoint", device="cuda")
