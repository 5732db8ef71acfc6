"""Speed of training, decoding, the recurrence, compilation and topologies: ``python -m train.benchmark NAME``."""

import dataclasses
import importlib.util
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.model import ModelConfig
from train.benchmark import cases, inference, models, report, topologies, traffic
from train.config import OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.data.kind import DataConfig
from train.devices.memory import TRAINING, check_memory
from train.loop import named
from train.loop.resolve import resolve
from train.measure.scores import evaluate_split
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.kind import ObjectiveConfig
from train.storage.outputs import check_folder
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.table import terminal

What = Literal["train", "decode", "inference", "scan", "compile", "topologies", "models", "traffic"]
WITH_TORCH = ("train", "decode", "scan")
PICTURES = {"inference": inference.draw}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Time JAX against PyTorch, in turns and in separate processes; or topologies and models against each other.

    Attributes:
        name: configuration; python -m train lists them.
        what: the measurement: whole training steps, greedy decoding, every token of greedy decoding by its position
            with the models of several configurations, the diagonal recurrence, compilation by depth,
            training steps with each topology or with the models of other configurations in turns in one process, or
            the memory traffic of each topology.
        rounds: number of turns of each contender.
        calls: timed calls per turn.
        batch_sizes: batch sizes of training and decoding.
        times: sequence lengths of the recurrence (batch 16, width 512).
        depths: layers for compilation.
        topologies: topologies to compare for ``topologies`` and ``traffic``; all if none is given.
        others: configurations whose models ``inference`` and ``models`` compare with the named one, with flags of their
            own in one argument: "gla_170m --model.width 128"; "LABEL=NAME" gives one another name in the table.
        prompt: tokens before the first that ``inference`` times.
        tokens: tokens that it times.
        piece: tokens of the prompt that it reads at once.
        bucket: positions in a row of its table.
        streams: numbers of streams, for topologies that accept several.
        checkpoint: run directory or exported folder with the model and its weights; empty for random weights.
        ppl: whether to evaluate the weights on the validation split after timing.
        torch: whether to time PyTorch too.
        torch_python: interpreter for PyTorch, if it is installed in another environment.
        out: folder of the results; if empty, they are only printed.
        model, data, optim, train: see training; the model is that of the checkpoint if there is one.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    what: What = "train"
    rounds: int = 5
    calls: int = 3
    batch_sizes: tuple[int, ...] = (2, 8)
    times: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    depths: tuple[int, ...] = (2, 4, 8, 16)
    topologies: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    prompt: int = 64
    tokens: int = 1984
    piece: int = 64
    bucket: int = 256
    streams: tuple[int, ...] = (1, 2, 4, 8)
    checkpoint: str = ""
    ppl: bool = False
    torch: bool = True
    torch_python: str = sys.executable
    out: str = "runs/benchmarks"
    model: ModelConfig = mhc_ssm()
    data: DataConfig = CorpusConfig()
    objective: ObjectiveConfig = CrossEntropyConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()


def parse(argv: list[str]) -> tuple[Flags, RunConfig, Params | None]:
    """Flags, the configuration they make of the named one, and the checkpoint's weights if one is given.

    Raises:
        ConfigError: a wrong flag or configuration, no PyTorch, or a checkpoint that cannot be read.
    """
    flags = cli.parse_named(Flags, argv, prog="python -m train.benchmark", default=_defaults)
    for field in ("rounds", "calls"):
        if getattr(flags, field) < 1:
            raise ConfigError(f"--{field} must be at least 1, got {getattr(flags, field)}")
    if flags.torch and flags.what in WITH_TORCH:
        _check_torch(flags.torch_python)
    model, params = flags.model, None
    if flags.checkpoint:
        if model != named.load(flags.name).model:
            raise ConfigError("the model comes from the checkpoint; leave out --model flags, or --checkpoint")
        run, params = load_run(flags.checkpoint)
        model = run.model
    objective = flags.objective.without_teacher()
    config = resolve(RunConfig(flags.name, "", model, flags.data, objective, flags.optim, flags.train))
    check_memory(config.model, TRAINING if flags.what == "train" else 1)
    return flags, config, params


def _check_torch(python: str) -> None:
    if not shutil.which(python):
        raise ConfigError(f"--torch-python {python}: no such program")
    if python == sys.executable and importlib.util.find_spec("torch") is None:
        raise ConfigError("PyTorch is not installed: pip install 'mhc-jax[test]', or time JAX alone with --torch False")


def _defaults(name: str) -> Flags:
    config = named.load(name)
    return Flags(
        name, model=config.model, data=config.data, objective=config.objective, optim=config.optim, train=config.train
    )


def measure(flags: Flags, config: RunConfig, params: Params | None) -> cases.Table:
    """The table that ``flags.what`` asks for."""
    plan = cases.Plan(flags.rounds, flags.calls, flags.torch_python if flags.torch else "")
    if flags.what == "scan":
        return cases.scan(plan, flags.times, batch=16, width=512, chunk=16)
    if flags.what == "compile":
        return cases.compilation(config, plan, flags.depths)
    if flags.what == "topologies":
        return topologies.table(config, flags.topologies, flags.streams, rounds=flags.rounds, calls=flags.calls)
    if flags.what == "models":
        return models.table(config, flags.others, rounds=flags.rounds, calls=flags.calls)
    if flags.what == "inference":
        plan = inference.Plan(flags.prompt, flags.tokens, flags.piece, flags.bucket)
        return inference.table(config, flags.others, plan)
    if flags.what == "traffic":
        return traffic.table(config, flags.topologies, flags.streams)
    if params is None:
        params = mhc_jax.init(config.model, jax.random.key(config.train.seed))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights")
        mhc_jax.save(weights, config.model, params)
        case = cases.train if flags.what == "train" else cases.decode
        rows, notes = case(config, weights, plan, flags.batch_sizes)
        if flags.ppl:
            # The timed steps changed the contenders' copies, so the weights are read again for evaluation.
            notes = [*notes, perplexity_note(config, mhc_jax.load(weights)[1], flags.checkpoint)]
    return rows, notes


def perplexity_note(config: RunConfig, params: Params, checkpoint: str) -> str:
    """Loss, perplexity and bits per byte on the whole validation split, as a sentence."""
    data = config.data.load(("validation",))
    data.check(config.model.vocab_size)
    found = evaluate_split(config, params, data)
    of = f"the weights of {checkpoint}" if checkpoint else "RANDOM weights (no --checkpoint was given)"
    return (
        f"Validation of {of}, restored after timing: loss {found['loss']:.4f}, perplexity {found['ppl']:.2f}, "
        f"{found['bpb']:.4f} bits per byte, {found['tokens']:,} tokens."
    )


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    about = report.machine()
    flags, config, params = parse(argv)
    if flags.out:
        check_folder("--out", flags.out)
    if flags.ppl and not flags.checkpoint:
        print("warning: perplexity of random weights; give --checkpoint RUN for trained ones", file=sys.stderr)
    rows, notes = measure(flags, config, params)
    print(terminal(rows), *map(textwrap.fill, notes), sep="\n\n")
    if flags.out:
        name = f"{flags.what}-{config.name}"
        report.write(Path(flags.out), name, {**about, "config": config.to_dict()}, rows, notes)
        print(f"\nWritten to {Path(flags.out, name)}.md and .json")
        if draw := PICTURES.get(flags.what):
            from train.report import figures

            figures.save_png(lambda: draw(rows), Path(flags.out, f"{name}.png"))
            print(f"Drawn in {Path(flags.out, name)}.png")


if __name__ == "__main__":
    cli.run(main)
