"""The command line: `sde-gen run ...` and the other commands, which the files in experiments/ call too."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from .. import parallel, threads
from ..data.captions import CAPTION
from ..locks import LockError
from ..sampling.failures import SolverError
from ..training import CheckpointError, Interrupted, TrainingError
from . import flags
from .average import AVERAGE
from .clip import CLIP_EXAMPLES, add_clip_flags, clip_run
from .compare import CompareSettings, check_compare, compare_run
from .config import ConfigError, RunConfig, parse_seconds, registered_solver, resolve
from .distance import EXAMPLES as DISTANCE_EXAMPLES
from .distance import add_distance_flags, distance_run
from .distill import DISTILL_EXAMPLES, DistillSettings, add_distill_flags, distill_run
from .doctor import doctor_run
from .evaluation import report_lines, sample_run
from .external import CHECK_EXAMPLES, IMPORT_EXAMPLES, add_check_flags, add_import_flags, check_run, import_run
from .image_scores import check_settings as check_settings_of_images
from .likelihood import LikelihoodSettings, check_settings, likelihood_run
from .noise_ends import resolve_ends, warnings_of_ends
from .report import write_report
from .restore import restore_run
from .restore_flags import RESTORE_EXAMPLES, add_restore_flags
from .restore_settings import RestoreSettings
from .restore_settings import checked as checked_restore
from .run_data import check, choose_device, config_of_run, default_directory, fetch_data, load_data
from .runs import TrainedRun, check_world, cost_lines, open_run
from .sample import sample_to_files
from .sample_job import SampleSettings
from .score import SCORE_EXAMPLES, ScoreSettings, add_score_flags, score_run
from .text import EXAMPLES as TEXT_EXAMPLES
from .text import add_text_flags, text_run
from .tokens import EXAMPLES as TOKENS_EXAMPLES
from .tokens import add_tokens_flags, holds_tokens, tokens_run, tokens_to_file


def _complain(message: str, name: str = "sde-gen") -> None:
    """One line on stderr; what befalls all processes of a torchrun is said by one of them."""
    line = " ".join(message.split())
    if parallel.once(line):
        print(f"{name}: {line}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command line."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; --help lists what is allowed", self.prog)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
    """Train or reuse, sample, measure, draw, say where everything lies."""
    config = resolve(*flags.layers(arguments))
    with parallel.processes(_device(arguments)) as device:
        _run(arguments, config, device)


def _run(arguments: argparse.Namespace, config: RunConfig, device: torch.device) -> None:
    seconds = parse_seconds(arguments.checkpoint_every)
    if arguments.download:
        with parallel.first_alone():
            fetch_data(config, say)
    if arguments.dry_run:
        data = load_data(config)
        config, evidence = resolve_ends(config, data)
        model = check(config, data)
        check_world(config)
        check_settings_of_images(config.sampling.features, config.sampling.reference, data)
        directory = arguments.out or default_directory(config)
        say(f"# {directory} on {device}")
        for line in (*evidence, *warnings_of_ends(config, data)):
            say(f"# noise: {line}")
        for line in cost_lines(config, data, model, directory, device):
            say(f"# {line}")
        say(config.to_yaml().rstrip("\n"))
        return
    show = not arguments.no_progress
    with contextlib.ExitStack() as hold:
        how = (arguments.tensorboard, hold, arguments.threads, True)
        opened = open_run(config, arguments.out, device, arguments.retrain, show, seconds, say, *how)
        scores = sample_run(opened, device, show)
        if parallel.rank() == 0:
            for line in report_lines(opened, scores):
                say(line)
            _report(opened.directory)


def sample(arguments: argparse.Namespace) -> None:
    """Write samples of a run's network to a file or a folder."""
    if holds_tokens(arguments.run):
        tokens_to_file(arguments, choose_device(arguments.device), say)
        return
    chosen = ("samples", "solver", "steps", "grid", "seed", "label", "guidance", "rule", "threads")
    given = {name: getattr(arguments, name) for name in chosen}
    prompt = [] if arguments.prompt is None else [f"{CAPTION}={arguments.prompt}"]
    settings = SampleSettings(**given, batch=arguments.batch_size, cond=(*arguments.cond, *prompt))
    with parallel.processes(choose_device(arguments.device)) as device:
        sample_to_files(arguments.run, arguments.out, settings, device, arguments.overwrite, not arguments.no_progress, say)


def likelihood(arguments: argparse.Namespace) -> None:
    """Score the data of a run."""
    settings = LikelihoodSettings(**{name: getattr(arguments, name) for name in LikelihoodSettings.__dataclass_fields__})
    check_settings(settings)
    with parallel.processes(_device(arguments)) as device, contextlib.ExitStack() as hold:
        opened = _named_run(arguments, device, hold)
        try:
            likelihood_run(opened, settings, say)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _report(opened.directory)


def score(arguments: argparse.Namespace) -> None:
    """Score items of the user's own."""
    chosen = {name: getattr(arguments, name) for name in ScoreSettings.__dataclass_fields__ if name != "cond"}
    settings = ScoreSettings(cond=tuple(arguments.cond), **chosen)
    with parallel.processes(_device(arguments)) as device:
        score_run(arguments.run, arguments.file, settings, arguments.out, device, arguments.overwrite, not arguments.no_progress, say)


def compare(arguments: argparse.Namespace) -> None:
    """Solvers against one another on the network of a run."""
    try:
        calls = None if arguments.calls is None else tuple(int(number) for number in arguments.calls.split(","))
    except ValueError:
        raise ConfigError(f"--calls takes whole numbers separated by commas, got {arguments.calls!r}") from None
    solvers = tuple(registered_solver(name.strip()) for name in arguments.solvers.split(","))
    of_images = (arguments.features, arguments.reference)
    settings = CompareSettings(solvers, calls, arguments.samples, arguments.seed, arguments.batch, *of_images)
    check_compare(settings)
    with parallel.processes(_device(arguments)) as device, contextlib.ExitStack() as hold:
        opened = _named_run(arguments, device, hold)
        compare_run(opened, settings, say)
        _report(opened.directory)


def distance(arguments: argparse.Namespace) -> None:
    """FID and its kin of a set of images, without a run."""
    distance_run(arguments, choose_device(arguments.device), say)


def clip(arguments: argparse.Namespace) -> None:
    """Pictures and captions in one space."""
    clip_run(arguments, _device(arguments), say)


def distill(arguments: argparse.Namespace) -> None:
    """A flow map of a run's network."""
    chosen = {name: getattr(arguments, name) for name in DistillSettings.__dataclass_fields__ if name != "strengths"}
    strengths = None if arguments.strengths is None else tuple(arguments.strengths)
    settings = DistillSettings(strengths=strengths, **chosen)
    distill_run(arguments.run, arguments.out, settings, _device(arguments), not arguments.no_progress, say)


def restore(arguments: argparse.Namespace) -> None:
    """Degraded data restored by the network of a run."""
    chosen = {name: getattr(arguments, name) for name in RestoreSettings.__dataclass_fields__ if name != "methods"}
    settings = checked_restore(RestoreSettings(methods=tuple(arguments.method or RestoreSettings.methods), **chosen))
    with contextlib.ExitStack() as hold:
        opened = _named_run(arguments, _device(arguments), hold)
        restore_run(opened, settings, arguments.out, not arguments.no_progress, say)
        _report(opened.directory)


def text(arguments: argparse.Namespace) -> None:
    """Pictures of sentences."""
    text_run(arguments, _device(arguments), say)


def tokens(arguments: argparse.Namespace) -> None:
    """Discrete diffusion of text or images of few levels."""
    tokens_run(arguments, _device(arguments), say)


def doctor(arguments: argparse.Namespace) -> int:
    """Why the samples of a run are bad: 1 where a cause is found."""
    directory = arguments.run if arguments.run is not None else default_directory(resolve())
    findings = doctor_run(directory, _device(arguments), arguments.samples, say)
    _report(directory)
    return int(bool(findings))


def import_file(arguments: argparse.Namespace) -> None:
    """Make a run directory of another library's checkpoint."""
    import_run(arguments, say)


def check_file(arguments: argparse.Namespace) -> int:
    """Whether what was said of another library's network fits its weights: 1 where it does not."""
    return int(not check_run(arguments, say))


def report(arguments: argparse.Namespace) -> None:
    """Write the page of the runs named."""
    say(f"report    {write_report(arguments.runs, arguments.out)}")


def _device(arguments: argparse.Namespace) -> torch.device:
    """The device that the command works on and, of a CPU, the number of threads; says where it is not all of them."""
    device = choose_device(arguments.device)
    if device.type == "cpu":
        try:
            chosen = threads.choose(arguments.threads)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if chosen is not None:
            say(f"threads   {chosen}")
    return device


def _report(directory: Path) -> None:
    """The page of a run that a command has just added to."""
    if parallel.rank() == 0:
        say(f"report    {write_report([directory])}")


def _named_run(arguments: argparse.Namespace, device: torch.device, hold: contextlib.ExitStack) -> TrainedRun:
    config = resolve() if arguments.run is None else config_of_run(arguments.run)
    how = {"progress": not arguments.no_progress, "say": say, "hold": hold, "thread_count": arguments.threads}
    return open_run(config, arguments.run, device, **how)


def say(line: str) -> None:
    """A line of the result, at once even where the output is a pipe."""
    if parallel.rank() == 0:
        print(line, flush=True)


Flags = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Sequence[Flags], str, str, str]] = {
    "run": (
        run,
        (flags.add_run_flags, flags.add_machine_flags),
        "train a score network and sample it",
        "Train a score network (or reuse the trained one), sample it, and leave pictures and numbers in a run directory.",
        flags.RUN_EXAMPLES,
    ),
    "sample": (
        sample,
        (flags.add_sample_flags,),
        "samples of a run's network as a file or a folder of PNGs",
        "Write samples of a run's network in the data's own units: arrays, tables with the data's header, PNGs.",
        flags.SAMPLE_EXAMPLES,
    ),
    "likelihood": (
        likelihood,
        (flags.add_likelihood_flags,),
        "bits per dimension of a run's data, with error bars",
        "Score a run's training and held-out data, and data unlike it, by the probability flow of its network.",
        flags.LIKELIHOOD_EXAMPLES,
    ),
    "score": (
        score,
        (add_score_flags,),
        "log-likelihoods and p-values of your own items",
        "Say how likely each item of a file is under a run's network, and how unlike held-out data that makes it.",
        SCORE_EXAMPLES,
    ),
    "compare": (
        compare,
        (flags.add_compare_flags,),
        "solvers against one another on a run's network",
        "DDPM ancestral sampling against the flow and the rest on one trained network: the same seeds, distance against calls.",
        flags.COMPARE_EXAMPLES,
    ),
    "distill": (
        distill,
        (add_distill_flags,),
        "a flow map of a run's network, for samples in one to four calls",
        "Train a run's network to jump along its own flow, so that it samples in one, two or four network calls.",
        DISTILL_EXAMPLES,
    ),
    "distance": (
        distance,
        (add_distance_flags,),
        "FID, KID and Inception Score of images of your own",
        "Compare a set of images with another, or with published moments, in features that are the same for everybody.",
        DISTANCE_EXAMPLES,
    ),
    "clip": (
        clip,
        (add_clip_flags,),
        "CLIP: pictures and captions in one space, and retrieval",
        "Train CLIP on captioned pictures (or go on with it), clean or noisy, and measure how often a picture finds its caption.",
        CLIP_EXAMPLES,
    ),
    "restore": (
        restore,
        (add_restore_flags,),
        "degraded data restored by a run's network",
        "Posterior samples of degraded data with a run's network as prior: what is missing, how sure that is, how far to trust it.",
        RESTORE_EXAMPLES,
    ),
    "text": (
        text,
        (add_text_flags,),
        "pictures of sentences",
        "Train GLIDE, CLIP and DALL-E 2's prior and decoder on captioned pictures, small and true, and draw what a prompt says.",
        TEXT_EXAMPLES,
    ),
    "tokens": (
        tokens,
        (add_tokens_flags,),
        "text and images of few levels as symbols",
        "Train a discrete diffusion model of text or of images of whole numbers, bound its bits, sample it, fill in text.",
        TOKENS_EXAMPLES,
    ),
    "doctor": (
        doctor,
        (flags.add_doctor_flags,),
        "why the samples of a run are bad",
        "Examine a run's network, data and sampling settings, and name the causes of bad samples.",
        flags.DOCTOR_EXAMPLES,
    ),
    "average": AVERAGE,
    "import": (
        import_file,
        (add_import_flags,),
        "a run directory from another library's checkpoint",
        "Read a checkpoint of score_sde, EDM, guided- or improved-diffusion without executing it, and make a run directory of it.",
        IMPORT_EXAMPLES,
    ),
    "check": (
        check_file,
        (add_check_flags,),
        "whether what was said of an imported network fits its weights",
        "Predict the noise of a few pictures with every stated fact as it is and changed, and say which one is wrong.",
        CHECK_EXAMPLES,
    ),
    "report": (
        report,
        (flags.add_report_flags,),
        "runs on one page, several side by side",
        "One self-contained HTML file of what run directories hold: numbers, pictures, films, warnings in words.",
        flags.REPORT_EXAMPLES,
    ),
}
"""Each command: what it does, its flags, a brief word, its description and examples."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of `sde-gen`: 0, 2 for bad input with one line that says what was wrong, 130 after Ctrl-C."""
    parser = Parser(prog="sde-gen", description="Score-based diffusion models in continuous time.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (function, add_flags, brief, description, examples) in COMMANDS.items():
        command = commands.add_parser(
            name, help=brief, description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for add in add_flags:
            add(command)
        command.set_defaults(function=function)
    arguments = parser.parse_args(argv)
    try:
        code = arguments.function(arguments)
    except (ConfigError, CheckpointError, LockError, OSError) as error:
        _complain(str(error))
        return 2
    except (TrainingError, SolverError) as error:
        _complain(str(error))
        return 1
    except Interrupted as error:
        _complain(f"{error}; the same command goes on from there")
        return 130
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except RuntimeError as error:
        if not parallel.lost(error):
            raise
        _complain("another process of this run has ended, and this one with it; the same command goes on from the last checkpoint")
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
