"""The flags that a command has, and how a fault or a mistyped flag is named in their terms."""

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from mhc_jax import registry
from mhc_jax.config import Config, ConfigError, FieldError
from mhc_jax.registry import listed, shown

T = TypeVar("T")

PLUGIN = "--import"
ELSEWHERE = f"; if it is defined elsewhere, add {PLUGIN} MODULE"
Plugins = Annotated[
    tuple[str, ...],
    tyro.conf.arg(name=PLUGIN.strip("-"), metavar="MODULE", help="module to import first; repeat the flag for others"),
    tyro.conf.UseAppendAction,
]

NUMBERS = {int: "be a whole number", float: "be a number"}

# Names of our flags in other projects (nanoGPT, Hugging Face, torchtitan, Levanter): the last part of the flag, or a
# whole former flag of ours, and our flag or a sentence. A flag that differs only before its last part needs no entry.
FOREIGN = {
    "adam-beta1": "--optim.beta1",
    "adam-beta2": "--optim.beta2",
    "adam-epsilon": "--optim.eps",
    "adjust-lr-fn": "--optim.muon-scale",
    "always-save-checkpoint": "--checkpoint.every",
    "backend": "set JAX_PLATFORMS=cpu, cuda or tpu in the environment",
    "batch-size-per-device": "--data.batch-size (of all devices together)",
    "bf16": "--model.execution.policy bfloat16",
    "block-size": "--data.seq-len",
    "checkpoint-interval": "--checkpoint.every",
    "compile": "the training step is always compiled",
    "data-dir": "--data.path",
    "data-parallel": "--mesh.data",
    "data-parallel-shard-degree": "--mesh.fsdp",
    "data-parallel-replicate-degree": "--mesh.data",
    "dataset": "--data.source",
    "dataset-name": "--data.source",
    "dataset-path": "--data.path",
    "decay-lr": "--optim.schedule",
    "decay-type": "--optim.decay-shape",
    "device": "set JAX_PLATFORMS=cpu, cuda or tpu in the environment",
    "dtype": "--model.execution.policy",
    "eval-interval": "--train.eval-every",
    "eval-iters": "--train.eval-batches",
    "eval-steps": "--train.eval-every",
    "fp16": "--model.execution.policy float16",
    "global-batch-size": "--data.batch-size",
    "grad-clip": "--optim.clip",
    "gradient-accumulation-steps": "--train.accumulate",
    "gradient-checkpointing": "--model.execution.remat block",
    "hidden-size": "--model.width",
    "init-from": "--resume RUN",
    "keep-latest-k": "--checkpoint.keep",
    "learning-rate": "--optim.lr",
    "load-checkpoint-path": "--resume RUN",
    "local-batch-size": "--data.batch-size (of all devices together)",
    "log-freq": "--log.every",
    "log-interval": "--log.every",
    "logging-steps": "--log.every",
    "loss-chunk": "--objective.chunk",
    "lr-decay-iters": "--optim.decay-steps",
    "lr-scheduler-type": "--optim.schedule",
    "max-grad-norm": "--optim.clip",
    "max-iters": "--train.steps",
    "max-new-tokens": "--tokens",
    "max-norm": "--optim.clip",
    "max-seq-length": "--data.seq-len",
    "max-steps": "--train.steps",
    "min-lr": "--optim.final-lr (a fraction of --optim.lr)",
    "min-lr-ratio": "--optim.final-lr",
    "mixed-precision": "--model.execution.policy bfloat16",
    "model": "--run",
    "model.mixer.qk-norm-eps": "give --model.mixer.qk-norm rms --model.mixer.qk-norm.eps EPS",
    "model.norm-bias": "--model.norm.bias",
    "model.norm-eps": "--model.norm.eps",
    "model-name-or-path": "name a configuration; python -m train lists them",
    "mp": "--model.execution.policy",
    "n-embd": "--model.width",
    "n-head": "--model.mixer.heads",
    "n-layer": "--model.layers",
    "num-epochs": "--train.epochs",
    "num-train-epochs": "--train.epochs",
    "num-train-steps": "--train.steps",
    "optimizer": "--optim.name",
    "optimizer-type": "--optim.name",
    "out-dir": "--run-dir",
    "output-dir": "--run-dir",
    "overwrite-output-dir": "a run is never overwritten; choose another --run-dir",
    "per-device-eval-batch-size": "--data.batch-size (of all devices together)",
    "per-device-train-batch-size": "--data.batch-size (of all devices together)",
    "records": "--count",
    "report-to": "--log.wandb PROJECT or --log.tensorboard",
    "resume-from-checkpoint": "--resume RUN",
    "save-interval": "--checkpoint.every",
    "save-steps": "--checkpoint.every",
    "save-total-limit": "--checkpoint.keep",
    "sequence-length": "--data.seq-len",
    "steps-per-eval": "--train.eval-every",
    "tensor-parallel-degree": "--mesh.tensor",
    "train-batch-size": "--data.batch-size",
    "train-data": "--data.source",
    "train-file": "--data.source",
    "training-steps": "--train.steps",
    "wandb-log": "--log.wandb PROJECT",
    "wandb-project": "--log.wandb",
    "warmup": "--optim.warmup-steps",
    "warmup-iters": "--optim.warmup-steps",
    "warmup-ratio": "--optim.warmup-steps",
}


def flags_of(record: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every flag of a command and the type of its value.

    Args:
        record: a dataclass, or an instance with the initial values of the flags, which decide the flags below them.
        prefix: prefix of the flags, with a dot at the end.
    """
    for field, flag, hint, marks in _fields(record, prefix):
        value = getattr(record, field.name, field.default)
        if dataclasses.is_dataclass(value):
            yield from flags_of(value, f"{flag}." if flag != prefix else prefix)
        # A part that is left out has no flags, nor can it be put in by one.
        elif tyro.conf.Positional not in marks and not any(map(dataclasses.is_dataclass, typing.get_args(hint))):
            yield f"--{flag}", hint


def _fields(record: Any, prefix: str) -> Iterator[tuple[dataclasses.Field, str, Any, list[Any]]]:
    """The fields of a record with the flag, the type and the marks of each; one without a name has the prefix.

    Those that no flag may set are left out.
    """
    hints = typing.get_type_hints(record if isinstance(record, type) else type(record), include_extras=True)
    for field in dataclasses.fields(record):
        hint, *marks = typing.get_args(hints[field.name]) if _annotated(hints[field.name]) else (hints[field.name],)
        name = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), field.name)
        if tyro.conf.Fixed not in marks:
            yield field, f"{prefix}{name}".replace("_", "-"), hint, marks


def without_parts(record: type) -> type:
    """The record without its parts, whose values are known only once a run or a configuration is named; for help."""
    hints = typing.get_type_hints(record, include_extras=True)
    own = [field for field in dataclasses.fields(record) if not dataclasses.is_dataclass(field.default)]
    parts = [f"--{field.name}.*" for field in dataclasses.fields(record) if field not in own]
    if not parts:
        return record
    plain = dataclasses.make_dataclass(
        record.__name__, [(field.name, hints[field.name], dataclasses.field(default=field.default)) for field in own]
    )
    summary, _, rest = (record.__doc__ or "").partition("\n\n")
    told = "start with the values of the run or configuration; see python -m train.inspect NAME --help"
    plain.__doc__ = f"{summary}\n\n    {', '.join(parts)} {told}\n\n{rest}"
    return plain


def with_plugins(record: type[T], default: T | None) -> tuple[type[T], T | None]:
    """A record, and an instance of it, that have the flag ``--import`` too; for help."""
    plugins = ("plugins", Plugins, dataclasses.field(default=()))
    wider = dataclasses.make_dataclass(record.__name__, [plugins], bases=(record,), frozen=True)
    wider.__doc__ = record.__doc__
    if default is None:
        return wider, None
    return wider, wider(**{field.name: getattr(default, field.name) for field in dataclasses.fields(record)})


def _annotated(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a record that is one kind of several.

    Attributes:
        flag: that takes the name of its kind.
        path: the fields that lead to it.
        axis: of its kinds.
        value: as it is; None if it is left out.
        optional: whether it may be.
    """

    flag: str
    path: tuple[str, ...]
    axis: str
    value: Any
    optional: bool


def parts_of(record: Any, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Part]:
    """The parts of a record, and of its parts, that are one kind of several."""
    for field, flag, hint, _ in _fields(record, prefix):
        value, here = getattr(record, field.name), (*path, field.name)
        kinds = typing.get_args(hint) or (hint,)
        axis = next((kind.axis for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)
        if axis is not None:
            yield Part(f"--{flag}", here, axis, value, type(None) in kinds)
        if dataclasses.is_dataclass(value):
            yield from parts_of(value, f"{flag}." if flag != prefix else prefix, here)


def kinds_chosen(record: T, argv: Sequence[str]) -> tuple[T, list[str]]:
    """The record with parts of other kinds, and the arguments less those that say so: ``--model.norm ln``.

    A part of the kind that it has already stays as it is. ``None`` leaves one out that may be missing.

    Raises:
        ConfigError: no such kind, or none given.
    """
    rest, words, parts = [], list(argv), {part.flag: part for part in parts_of(record)}
    while words:
        flag, equals, kind = words[0].partition("=")
        part = parts.get(normal(flag))
        if part is None:
            rest.append(words.pop(0))
            continue
        kind = kind if equals else next(iter(words[1:]), "")
        del words[: 1 if equals else 2]
        known = [*registry.names(part.axis), *(["None"] if part.optional else [])]
        if not kind or kind.startswith("--"):
            raise ConfigError(f"{part.flag} needs a kind: {listed(known)}")
        if kind not in known:
            raise ConfigError(f"{part.flag}: {registry.unknown(part.axis, kind, known)}{ELSEWHERE}")
        if kind != str(getattr(part.value, "kind", None)):
            chosen = None if kind == "None" else registry.get(part.axis, kind)()
            record = _with_part(record, part.path, chosen)
            parts = {part.flag: part for part in parts_of(record)}
    return record, rest


def _with_part(record: Any, path: tuple[str, ...], part: Any) -> Any:
    inner = part if len(path) == 1 else _with_part(getattr(record, path[0]), path[1:], part)
    return dataclasses.replace(record, **{path[0]: inner})


def switches_spelled(argv: Sequence[str], switches: Collection[str]) -> list[str]:
    """The arguments with ``--flag True`` and ``--flag=False``, from older scripts, as ``--flag`` and ``--no-flag``."""
    spelled, rest = [], list(argv)
    while rest:
        flag, _, value = rest[0].partition("=")
        given = [flag, value] if value else rest[:2]
        if normal(flag) in switches and given[1:] in (["True"], ["False"]):
            spelled.append(flag if given[1] == "True" else negated(normal(flag)))
            del rest[: 1 if value else 2]
        else:
            spelled.append(rest.pop(0))
    return spelled


def negated(flag: str) -> str:
    """The flag that turns a switch off: ``--train.no-resume``."""
    head, dot, last = flag.removeprefix("--").rpartition(".")
    return f"--{head}{dot}no-{last}"


def normal(flag: str) -> str:
    """A flag without its value, in our spelling."""
    return flag.partition("=")[0].replace("_", "-")


def instead_of(flag: str, known: Collection[str]) -> str:
    """The message about an unknown flag: our flag of that meaning, or else the nearest."""
    return f"unknown flag {flag.partition('=')[0][:60]}{_ours(flag, known) or '; --help shows the flags'}"


def instead_of_field(path: Sequence[str], known: Collection[str]) -> str:
    """:func:`instead_of` for a field of a file, in the words of a file: ``unknown field train.lr: use optim.lr``."""

    def field(flag: re.Match) -> str:
        return flag[1].replace("-", "_")

    name = ".".join(path)
    return f"unknown field {name[:60]}{re.sub(r'--([a-z]+[.][a-z.-]+)', field, _ours(f'--{name}', known))}"


def _ours(flag: str, known: Collection[str]) -> str:
    """The end of a message: the intended flag, or the nearest ones; empty if none is near."""
    word = normal(flag).lower().lstrip("-")
    last = word.rpartition(".")[2]
    if answer := FOREIGN.get(word, FOREIGN.get(last)):
        ours = answer.split()[0]
        if ours in known or not ours.startswith("--") or ours == "--resume":
            return f": {'use ' if ours.startswith('--') else ''}{answer}"
    ours = [name for name in known if name.lstrip("-").rpartition(".")[2] == last]
    if not ours:
        ours = difflib.get_close_matches(f"--{word}"[:100], list(known), n=1)
    if not ours:
        tails = {name.lstrip("-").rpartition(".")[2]: name for name in known}
        ours = [tails[tail] for tail in difflib.get_close_matches(last[:100], list(tails), n=1)]
    return f"; did you mean {' or '.join(sorted(ours)[:3])}?" if ours else ""


def misfit(argv: Sequence[str], known: Mapping[str, Any]) -> str | None:
    """The message about the first value that is missing or of the wrong type; None if there is none.

    Args:
        known: types by flag, as from :func:`flags_of`.
    """
    found = {}
    for argument, following in itertools.zip_longest(argv, argv[1:]):
        flag, equals, value = normal(argument), *argument.partition("=")[1:]
        if flag not in known:
            continue
        if not equals:
            value = following if following is not None and not following.startswith("--") else None
        if fault := _misfit(flag, known[flag], value):
            found.setdefault(known[flag] is bool, fault)
    # The word after a switch may be a separate argument, so other faults are reported first.
    return found.get(False) or found.get(True)


def _misfit(flag: str, hint: Any, value: str | None) -> str | None:
    if hint is bool:
        off = negated(flag)
        return value and f"{flag} is a switch, which is given alone, or as {off}; got {shown(value)}"
    if value is None:
        return f"{flag} needs a value"
    if value == "None" and type(None) in typing.get_args(hint):
        return None
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        takes, fits = f"be one of {listed(kinds)}", value in kinds
    elif len(kinds) == 1 and kinds[0] in NUMBERS:
        takes, fits = NUMBERS[kinds[0]], _is(kinds[0], value)
    else:
        return None
    return None if fits else f"{flag} must {takes}, got {shown(value)}"


def _is(kind: type, value: str) -> bool:
    try:
        kind(value)
    except ValueError:
        return False
    return True


def spelled(error: FieldError) -> str:
    """The fault with fields as the flags that set them: ``--optim.lr must be positive, got -1.0``."""

    def flag(match: re.Match) -> str:
        word = match[0]
        ours = word.partition(".")[0] in error.fields and ("." in word or "_" in word or match.start() == 0)
        return f"--{'.'.join([*error.path, word])}".replace("_", "-") if ours else word

    # Not inside quotes or numbers: a name there is a value.
    return re.sub(r"(?<![\w'\".-])[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*", flag, error.fault)
