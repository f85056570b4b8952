"""Training of CLIP, which can be killed at any step and goes on, and its files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..conditions.tokenizer import PAD, Tokenizer
from ..data import Normalizer, as_items
from ..devices import find_device
from ..errors import CheckpointError
from ..pairs import CLIP, ImageTower, TextTower, info_nce
from ..pairs.augment import Jitter
from ..pairs.contrast import MOST_SCALE
from ..progress import bar as progress_bar
from ..sdes import SDE, SDES, make_sde
from .batches import batch_order
from .checkpoint import STATE, STATE_VALUES, WEIGHTS, name_of, open_checkpoint, read_values, tensors_file, values_file
from .ema import PowerAverage
from .resume import load_optimizer_state, optimizer_state
from .store import versions, write_version

FORMAT = "clip 1"
CLIP_DESCRIPTION = "clip.json"
PARTS = 4
"""Texts of a batch are embedded in so many parts."""
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ClipSettings:
    """How CLIP is trained. Raises ValueError for a value that is not allowed.

    steps: of the optimiser. seconds: training ends after this time of the clock, and the decay follows it; None: no limit.
    batch: pairs in each step, each the others' negatives.
    lr, warmup, weight_decay: AdamW's, which decays the rate to 0 along a cosine; vectors and gains are not shrunk.
    ema_width: of the average of the weights (`PowerAverage`).
    jitter: random moves of images, or None.
    bfloat16: True runs the image tower under autocast to bfloat16.
    seed: of weights, order, captions, moves and noise.
    """

    steps: int = 2000
    seconds: float | None = None
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.1
    ema_width: float = 0.1
    jitter: Jitter | None = field(default_factory=Jitter)
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 2), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name in ("lr", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds!r}")


def train_clip(
    images: Any,
    captions: Sequence[str] | Sequence[Sequence[str]],
    settings: ClipSettings | None = None,
    sde: SDE | str | None = None,
    same: Tensor | None = None,
    mirrored: Tensor | None = None,
    dims: int = 128,
    image_options: dict[str, Any] | None = None,
    text_options: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    path: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
    on_log: Log | None = None,
) -> CLIP:
    """A CLIP of images (N, C, *spatial) in the data's own units and their captions, with averaged weights, in evaluation mode.

    captions: of each image a text, or several, of which each step draws one.
    sde: None trains on the images as they are; an SDE, or its name, on its states at half log-SNRs spread evenly, which the tower is told.
    same: (N,) integers: images of one number are not told apart; None: those whose first captions are the same.
    mirrored: (N,) Boolean: images that `settings.jitter` may turn left to right; None: none (a caption may say left and right).
    dims: of the embeddings. image_options, text_options: of `ImageTower` and `TextTower`, whose words are those of the captions.
    path: a directory, where the state is saved every `checkpoint_seconds` and at the end; a training that is there goes on, the same to the
        bit on the CPU as one that was not stopped, and one that is done is loaded. None: nothing is written.
    on_log: called with {"step", "loss", "scale"} some 100 times.

    Raises ValueError for data that do not fit together, CheckpointError for a directory with another training.
    Radford et al. 2021, arXiv:2103.00020; of noisy images Nichol et al. 2021, arXiv:2112.10741.
    """
    settings = settings or ClipSettings()
    x = as_items(images)
    variants = [[each] if isinstance(each, str) else list(each) for each in captions]
    if len(variants) != len(x) or not all(variants) or len(x) < 2:
        raise ValueError(f"one caption or more for each of at least two images is needed, got {len(variants)} for {len(x)} images")
    where = find_device(device)
    process = make_sde(sde) if isinstance(sde, str) else sde
    text_options = dict(text_options or {})
    if "words" not in text_options:
        every = [text for each in variants for text in each]
        tokenizer = Tokenizer.fit(every, **{key: text_options[key] for key in ("buckets", "length") if key in text_options})
        text_options |= {"words": tokenizer.words, "length": tokenizer.length}
    units = Normalizer.fit(x, "standard")
    with torch.random.fork_rng(devices=[] if where.type == "cpu" else [where]):
        torch.manual_seed(settings.seed)
        towers = (ImageTower(x.shape[1:], dims, noisy=process is not None, **(image_options or {})), TextTower(dims, **text_options))
        clip = CLIP(*towers, units, process, float(units.encode(x).square().mean().sqrt())).to(where)
        numbers = _numbered(clip.text.tokenizer, variants).to(where)
        if same is None:
            firsts = {each[0]: place for place, each in enumerate(variants)}
            same = torch.tensor([firsts[each[0]] for each in variants])
        of_items = (x.to(where), numbers, torch.tensor([len(each) for each in variants], device=where), same.to(where))
        return _Training(clip, settings, of_items, None if mirrored is None else mirrored.to(where), path).run(
            checkpoint_seconds, progress, on_log
        )


def _numbered(tokenizer: Tokenizer, variants: Sequence[Sequence[str]]) -> Tensor:
    """The captions' numbers, (N, most captions of an image, L, K)."""
    most = max(map(len, variants))
    rows = tokenizer([text for each in variants for text in (*each, *[""] * (most - len(each)))])
    return rows.reshape(len(variants), most, *rows.shape[1:])


class _Training:
    """A CLIP on its way. Each step's draws are a function of the seed and the step."""

    def __init__(
        self,
        clip: CLIP,
        settings: ClipSettings,
        items: tuple[Tensor, Tensor, Tensor, Tensor],
        mirrored: Tensor | None,
        path: str | os.PathLike[str] | None,
    ) -> None:
        self.clip, self.settings, self.items, self.mirrored = clip, settings, items, mirrored
        self.path = None if path is None else Path(path)
        flat = [parameter for parameter in clip.parameters() if parameter.ndim < 2]
        matrices = [parameter for parameter in clip.parameters() if parameter.ndim >= 2]
        self.parameters = [*matrices, *flat]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": flat, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True)
        self.average = PowerAverage(clip, settings.ema_width)
        self.step = 0
        self.before = self.worked = 0.0  # seconds of the clock and of processors of the runs that this one goes on from
        self.began = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """The time that the training has taken."""
        return self.before + time.monotonic() - self.began[0]

    @property
    def made(self) -> CLIP:
        """The CLIP with averaged weights."""
        found: CLIP = self.average.module  # type: ignore[assignment]
        return found.eval().requires_grad_(False)

    def run(self, checkpoint_seconds: float, progress: bool, on_log: Log | None) -> CLIP:
        settings = self.settings
        done = self.restore()
        self.began = time.monotonic(), time.process_time()
        saved = self.began[0]
        recent: list[Tensor] = []
        order = batch_order(len(self.items[0]), min(settings.batch, len(self.items[0])), settings.seed, self.step, self.clip.device)
        self.clip.train()
        with progress_bar(settings.steps, "training CLIP", "step", progress, self.step) as bar:
            while not done:
                share = self.step / settings.steps
                if settings.seconds is not None:
                    share = max(share, self.seconds / settings.seconds)
                if share >= 1:
                    break
                recent.append(self.advance(next(order), share))
                bar.update()
                now = time.monotonic()
                if on_log is not None and self.step % max(1, settings.steps // 100) == 0:
                    on_log(
                        {"step": self.step, "loss": float(torch.stack(recent).mean()), "scale": float(self.clip.log_scale.detach().exp())}
                    )
                    recent = []
                if self.path is not None and now - saved >= checkpoint_seconds:
                    self.save(complete=False)
                    saved = now
        if self.path is not None and not done:
            self.save(complete=True)
        return self.made

    def advance(self, rows: Tensor, share: float) -> Tensor:
        """One step on the pairs `rows`; its loss."""
        settings, clip = self.settings, self.clip
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        images, numbers, counts, same = (value[rows] for value in self.items)
        if settings.jitter is not None and images.ndim == 4:
            images = settings.jitter(images, None if self.mirrored is None else self.mirrored[rows])
        variant = (torch.rand(len(rows), device=rows.device) * counts).long()
        texts = numbers[torch.arange(len(rows), device=rows.device), variant]
        level, z = None, images
        if clip.sde is not None:
            z, sde = clip.normalizer.encode(images).float(), clip.sde
            low, high = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
            place = (torch.randperm(len(z), device=z.device) + torch.rand(len(z), device=z.device)).double() / len(z)
            level = sde.time_of(low + (high - low) * place).clamp(sde.t_min, sde.t_max)
            alpha, sigma = (value.float().reshape(-1, *[1] * (z.ndim - 1)) for value in sde.marginal(level))
            z = alpha * z + sigma * torch.randn_like(z)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=settings.bfloat16):
            image = clip.embed_images(z) if level is None else clip.embed_states(z, level)
        # Texts stay in float32: on a CPU the gradient of attention in bfloat16 is slower, not faster.
        loss = info_nce(image.float(), _in_lengths(clip, texts), clip.log_scale, same)
        rate = settings.lr * min(1.0, (self.step + 1) / max(1, settings.warmup)) * 0.5 * (1 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            clip.log_scale.clamp_(max=math.log(MOST_SCALE))
        self.average.update(clip)
        self.step += 1
        return loss.detach()

    def save(self, complete: bool) -> None:
        """Write a version with all that the training needs to go on."""
        assert self.path is not None
        tensors = {f"raw.{key}": value for key, value in self.clip.state_dict().items()} | optimizer_state(self.optimizer)
        spent = {"seconds": self.seconds, "processor_seconds": self.worked + time.process_time() - self.began[1]}
        values = {"step": self.step, "updates": self.average.updates, "complete": complete, "about": self._about()} | spent
        save_clip(self.made, self.path, extra={"steps": self.step} | spent, state=(tensors, values))

    def restore(self) -> bool:
        """Go on from what lies at `path`; whether that is done."""
        if self.path is None or not versions(self.path):
            return False
        version = open_checkpoint(self.path)
        try:
            tensors, values = load_file(version / STATE), read_values(version / STATE_VALUES)
            if values["about"] != self._about():
                changed = [key for key, value in self._about().items() if values["about"].get(key) != value]
                raise CheckpointError(f"{self.path} holds a CLIP of other {' and '.join(changed)}: give another directory, or remove it")
            self.average.module.load_state_dict(_part(load_file(version / WEIGHTS), "clip"))
            self.clip.load_state_dict(_part(tensors, "raw"))
            load_optimizer_state(self.optimizer, self.parameters, _part(tensors, "optimizer"))
            self.step, self.average.updates = int(values["step"]), int(values["updates"])
            self.before, self.worked = float(values["seconds"]), float(values["processor_seconds"])
            return bool(values["complete"])
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot go on with the CLIP in {self.path}: {type(error).__name__}: {error}") from error

    def _about(self) -> dict[str, Any]:
        """What tells this training from another."""
        clip, (x, numbers, *_) = self.clip, self.items
        data = [list(x.shape), float(x.double().sum()), list(numbers.shape), int(numbers.long().sum())]
        return {"settings": asdict(self.settings), "data": data, "towers": clip.settings(), "sde": _of_sde(clip.sde)}


def _in_lengths(clip: CLIP, texts: Tensor) -> Tensor:
    """Embeddings of texts (B, L, K), those of like lengths together: most are far shorter than the longest."""
    sizes, order = (texts[:, :, 0] != PAD).sum(1).sort()
    parts = [clip.text(texts[rows, : max(1, int(most[-1]))]) for rows, most in zip(order.chunk(PARTS), sizes.chunk(PARTS), strict=True)]
    return torch.cat(parts)[order.argsort()]


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _of_sde(sde: SDE | None) -> dict[str, Any] | None:
    return None if sde is None else {"name": name_of(SDES, sde), "settings": dict(sde.settings)}


def save_clip(
    clip: CLIP,
    path: str | os.PathLike[str],
    extra: dict[str, Any] | None = None,
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> Path:
    """Write a CLIP to the directory `path`, weights as safetensors and all else as JSON, tokenizer included; a new version that is whole or
    not there (`write_version`). `extra` is JSON-able. CheckpointError for an SDE of a class that is not registered."""
    process = _of_sde(clip.sde)
    if process is not None and process["name"] is None:
        raise CheckpointError(f"cannot save a CLIP of {type(clip.sde).__name__}: register the SDE first (sde_gen.register_sde)")
    about = {"format": FORMAT, **clip.settings(), "sde": process, "normalizer": clip.normalizer.to_config(), "extra": extra or {}}
    files = {
        WEIGHTS: tensors_file({f"clip.{key}": value for key, value in clip.state_dict().items()}),
        CLIP_DESCRIPTION: values_file(about),
    }
    if state is not None:
        files |= {STATE: tensors_file(state[0]), STATE_VALUES: values_file(state[1])}
    write_version(Path(path), files)
    return Path(path)


def clip_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `extra` that a CLIP was saved with: of a training "steps", "seconds" of the clock and "processor_seconds" of all its runs."""
    return dict(read_values(open_checkpoint(path) / CLIP_DESCRIPTION).get("extra") or {})


def load_clip(path: str | os.PathLike[str], device: torch.device | str | None = None) -> CLIP:
    """The CLIP saved at `path`, in evaluation mode; nothing is executed. CheckpointError, one line, for none or a damaged one."""
    version = open_checkpoint(path)
    try:
        about = read_values(version / CLIP_DESCRIPTION)
        if about.get("format") != FORMAT:
            raise ValueError(f"it is not a CLIP of format {FORMAT!r}")
        tensors = _part(load_file(version / WEIGHTS), "clip")
        with torch.device("meta"):  # nothing is allocated before the file is known to hold as much
            one = torch.ones(1, device="cpu")
            expected = _made(about, Normalizer(one, one)).state_dict()
        for key, value in expected.items():
            found = tensors.get(key)
            if not key.startswith("normalizer.") and (found is None or found.shape != value.shape):
                raise ValueError(f"{key} is {'missing' if found is None else f'of shape {tuple(found.shape)}'}, not {tuple(value.shape)}")
        clip = _made(about, Normalizer.from_config(about["normalizer"]))
        clip.load_state_dict(tensors)
        return clip.to(find_device(device)).eval().requires_grad_(False)
    except (OSError, SafetensorError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load the CLIP at {path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _made(about: dict[str, Any], units: Normalizer) -> CLIP:
    process = None if about["sde"] is None else make_sde(about["sde"]["name"], **about["sde"]["settings"])
    options = about["image"]
    return CLIP(
        ImageTower(about["shape"], **options), TextTower(options["dims"], **about["text"]), units, process, float(about["data_std"])
    )
