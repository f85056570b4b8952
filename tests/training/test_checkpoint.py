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


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_rebuilt(name: str, tmp_path: Path) -> None:
    network = make_network(name, (1, 8, 8), classes=3).eval()
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


def test_what_could_not_be_rebuilt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="network is Linear; it must be one of"):
        sde_gen.save(ScoreModel(nn.Linear(2, 2), make_sde("vp")), tmp_path / "checkpoint")
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
