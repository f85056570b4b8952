"""CLIP on the emoji of the package: do held-out pictures find their captions?

    python benchmarks/text_pairs.py --threads 2 --seconds 600              ten minutes on two cores
    python benchmarks/text_pairs.py --steps 400 --out runs/pairs           by steps; a training that was stopped goes on

Two kinds of pictures are held out: 300 cells, a concept in a style of which training has the other style, and 100 concepts in both styles
that training never sees. A cell's picture is asked for its caption among all 3,188 (chance 0.0003), a concept's among the 100 unseen ones
of its style (chance 0.01), with the tags of emojibase in the captions and with label and style alone; a caption is asked for its picture
likewise. Zero-shot: the style by the caption "in the style of noto" or "... fluent". Standard errors are of the mean over concepts. The
table of a network that learned nothing, its weights as they are made, stands beside it. Results go into --json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_gen.commands.clip import train_on
from sde_gen.data import load_dataset
from sde_gen.data.emoji import CELL, CONCEPT, STYLES, EmojiPictures, emoji_pictures
from sde_gen.pairs import CLIP, recall
from sde_gen.pairs.augment import Jitter
from sde_gen.training.pairs import ClipSettings, clip_extra
from sde_gen.unknown_numbers import to_json

TARGET = 0.25
"""R@1 of pictures of both kinds, with tags."""


def measure(clip: CLIP, known: EmojiPictures) -> list[dict[str, Any]]:
    """Every retrieval of the table, a dict each."""
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        pictures = clip.embed_images(known.images.float()).cpu()
        for tags in (True, False):
            captions = clip.embed_texts([known.caption(row, tags) for row in range(len(known.images))]).cpu()
            found += _of_captions(pictures, captions, known, "label, tags, style" if tags else "label, style")
        styles = clip.embed_texts([f"in the style of {style}" for style in STYLES]).cpu()
    held = torch.nonzero(known.part != 0)[:, 0]
    right = torch.nn.functional.one_hot(known.style[held], len(STYLES)).bool()
    found.append(_row("style of 500 held-out pictures", "zero-shot", pictures[held] @ styles.T, right, known.concept[held]))
    return found


def _of_captions(pictures: Tensor, captions: Tensor, known: EmojiPictures, words: str) -> list[dict[str, Any]]:
    cells, unseen = known.rows(CELL), known.rows(CONCEPT)
    every = torch.arange(len(pictures))
    same_style = known.style[unseen][:, None] == known.style[unseen][None]

    def answer(rows: Tensor, candidates: Tensor) -> Tensor:
        return rows[:, None] == candidates[None]

    among = (pictures[unseen] @ captions[unseen].T).masked_fill(~same_style, -torch.inf)
    back = (captions[unseen] @ pictures[unseen].T).masked_fill(~same_style, -torch.inf)
    of_cells, of_unseen = known.concept[cells], known.concept[unseen]
    right, own = answer(cells, every), answer(unseen, unseen)
    rows = [
        _row("300 held-out cells, among all 3,188 captions", words, pictures[cells] @ captions.T, right, of_cells),
        _row("100 unseen concepts, among their captions", words, among, own, of_unseen),
        _row("captions of the cells, among all 3,188 pictures", words, captions[cells] @ pictures.T, right, of_cells),
        _row("captions of the unseen, among their pictures", words, back, own, of_unseen),
    ]
    obeyed = known.style[(pictures[cells] @ captions.T).argmax(1)] == known.style[cells]
    rows[0]["style_of_the_nearest_right"] = float(obeyed.double().mean())
    return rows


def _row(what: str, words: str, similarity: Tensor, right: Tensor, concept: Tensor) -> dict[str, Any]:
    candidates = float(torch.isfinite(similarity).sum(1).double().mean())
    numbers = {f"R@{k}": vars(recall(similarity, right, k, concept)) for k in (1, 10)}
    return {"what": what, "captions": words, "chance": 1 / candidates, **numbers}


def show(rows: list[dict[str, Any]], title: str) -> None:
    """A table of them."""
    print(f"\n{title}\n{'':50}{'captions':20}{'chance':>8}{'R@1':>18}{'R@10':>18}")
    for row in rows:
        each = "".join(f"{row[k]['value']:>10.3f} +- {row[k]['std_error']:.3f}" for k in ("R@1", "R@10"))
        print(f"{row['what']:50}{row['captions']:20}{row['chance']:>8.4f}{each}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of the optimiser, at most (%(default)s)")
    parser.add_argument("--seconds", type=float, help="of the clock, at most")
    parser.add_argument("--batch", type=int, default=256, help="pairs in each step (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and moves (%(default)s)")
    parser.add_argument("--out", type=Path, help="directory that a training goes on from")
    parser.add_argument("--json", type=Path, help="file of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = emoji_pictures()
    settings = ClipSettings(
        arguments.steps,
        arguments.seconds,
        arguments.batch,
        arguments.lr,
        jitter=Jitter(contrast=0.1),
        bfloat16=True,
        seed=arguments.seed,
    )
    data, cpu = load_dataset("emoji"), torch.device("cpu")
    still = ClipSettings(1, batch=2, lr=0.0, seed=arguments.seed)
    untrained = measure(train_on(data, still, None, cpu, None, False, lambda line: None), known)
    began, spent = time.monotonic(), time.process_time()
    clip = train_on(data, settings, None, cpu, arguments.out)
    cost: dict[str, Any] = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - spent}
    cost |= {} if arguments.out is None else clip_extra(arguments.out)  # of all runs of a training that was stopped
    cost["threads"] = arguments.threads
    rows = measure(clip, known)
    show(untrained, "weights as they are made")
    show(rows, f"after {cost['processor_seconds']:.0f} processor seconds, {cost['seconds']:.0f} of the clock")
    print(f"\nstyle of the nearest caption is the picture's: {rows[0]['style_of_the_nearest_right']:.3f} of the cells")
    for row in rows[:2]:
        print(f"target {TARGET}: {row['what']}: {'reached' if row['R@1']['value'] >= TARGET else 'missed'} with {row['R@1']['value']:.3f}")
    if arguments.json is not None:
        settled = {"steps": arguments.steps, "batch": arguments.batch, "lr": arguments.lr, "seed": arguments.seed, **cost}
        arguments.json.write_text(to_json({"settings": settled, "trained": rows, "untrained": untrained}, 1) + "\n")


if __name__ == "__main__":
    main()
