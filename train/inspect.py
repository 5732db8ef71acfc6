"""The parts, cost and stream statistics of a model: ``python -m train.inspect RUN_OR_NAME``."""

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

import mhc_jax
from mhc_jax import diagnostics
from mhc_jax.backend import compiling_for
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, check_policy, param_shapes
from mhc_jax.models import mhc_ssm
from mhc_jax.nn.model import ModelConfig
from mhc_jax.precision import PolicyName
from train.config import MeshConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import CorpusConfig
from train.data.files import replacing
from train.data.kind import Batch, DataConfig
from train.devices import sharding
from train.devices.memory import TRAINING, check_memory
from train.loop import named
from train.loop.resolve import resolve
from train.measure import parts, streams, target
from train.measure.cost import collective_rows, cost_rows, machine_rows, parameter_rows
from train.objectives.cross_entropy import CrossEntropyConfig
from train.objectives.kind import ObjectiveConfig
from train.report import quantities
from train.storage.folder import RUN_FILE
from train.storage.outputs import check_file
from train.storage.restore import load_run
from train.terminal import cli
from train.terminal.console import task
from train.terminal.table import terminal

# What a flag may change of the configuration.
PARTS = ("model", "data", "objective", "optim", "train", "mesh")

ESTIMATE = """\
The time is the TPU compiler's own estimate of cycles, from shapes, without
collectives; nothing has run. Products of matrices are estimated 11 to 42 %
above the chip's peak rate. The compiler does not estimate Pallas kernels: they
count as if they only moved their bytes, or, where that takes longer, only
multiplied at the peak rate. The MFU is that of this time."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Parameters, memory, arithmetic, compile time and stream statistics of a run or of a configuration.

    Attributes:
        name: run directory, exported folder, or name of a configuration (its initial parameters).
        which: checkpoint of a run directory.
        compile: whether to compile a training step, for memory, arithmetic and compile time.
        topology: machine to compile for, which need not be present; only its requirements are shown:
            ``v4:AxBxC``, ``v5e:AxB``, ``v5p:AxBxC``, ``v6e:AxB`` (chips of a TPU slice along each axis), ``h100:N``.
        picture: file of the plots of mixing matrices and statistics; empty for ``mixing.png`` in the folder of
            the run or export, or ``mixing-NAME.png`` here.
        html: file of a self-contained report with all of this and the losses; empty for none.
        json: file of all of this as numbers; empty for none.
        policies: numeric policies, one or several, that the mixing is measured under beside the model's own.
        profile: whether to measure the time of a training step and of a decoding step by part, which takes a minute.
        cache: tokens that the cache of such a decoding step has room for; None for the model's longest sequence.
        tokens: number of validation tokens to average statistics over; random tokens are used for 0 or without a run.
        model, data, objective, optim, train: see training.
        mesh: see training; over the devices of the topology.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    which: Literal["best", "last"] = "best"
    compile: bool = True
    topology: Annotated[str, tyro.conf.arg(name="compile.topology")] = ""
    picture: str = ""
    html: str = ""
    json: str = ""
    policies: tuple[PolicyName, ...] = ("float32", "bfloat16")
    profile: bool = False
    cache: int | None = None
    tokens: int = 2048
    model: ModelConfig = mhc_ssm()
    data: DataConfig = CorpusConfig()
    objective: ObjectiveConfig = CrossEntropyConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    if any(argument.startswith("--compile.topology") for argument in argv):
        target.prepare_environment()  # reading a run already asks for devices
    flags = cli.parse_named(Flags, argv, prog="python -m train.inspect", default=_defaults)
    if flags.tokens < 0:
        raise ConfigError(f"tokens must not be negative, got {flags.tokens}")
    machine = target.find(flags.topology) if flags.topology else None
    if flags.cache is not None and (flags.cache < 1 or not flags.profile):
        raise ConfigError(f"--cache is the length of a decoding step's cache under --profile, got {flags.cache}")
    if machine and (flags.html or flags.json or flags.profile or not flags.compile):
        words = "leave out --html, --json, --profile and --compile"
        raise ConfigError(f"--compile.topology compiles and prints tables, nothing else; {words}")
    from train.report import figures
    from train.report.page import UNTAPPED, Findings, read_run, render
    from train.report.record import dump

    config, params = load_run(flags.name, flags.which) if _is_run(flags.name) else (named.load(flags.name), None)
    if not machine and flags.mesh != config.mesh:
        raise ConfigError("--mesh.* lays out the devices of --compile.topology; give one, such as v5e:2x2 or h100:8")
    config = config.replace(**{part: getattr(flags, part) for part in PARTS})
    config = resolve(config)
    if machine:
        _look_ahead(config, machine)
        return
    for policy in flags.policies:
        check_policy(_under(config, policy).model)
    check_memory(config.model, TRAINING + (config.optim.ema > 0) if flags.compile or flags.profile else 1)
    shapes = param_shapes(config.model)
    if params is not None and jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
        raise ConfigError(f"the model flags do not fit the parameters of {flags.name}; leave them out")
    picture = flags.picture or _picture(flags.name)
    check_file("--picture", picture)
    for flag, file in (("--html", flags.html), ("--json", flags.json)):
        if file:
            check_file(flag, file)
    parameters, cost = parameter_rows(shapes), []
    print(terminal(parameters))
    if flags.compile:
        with task("compiling the training step"):
            cost = cost_rows(config)
        print("", terminal(cost), sep="\n")
    profile = None
    if flags.profile:
        with task("measuring the time of every part"):
            profile = parts.measure(config, _params(config, params), flags.cache)
        print("", terminal(profile.rows), "", terminal(profile.memory), "", sep="\n")
        print(textwrap.fill(profile.note, 80))
    recorded, policies, tokens = None, [], ""
    if streams.mixes(config):
        with task("measuring streams"):
            recorded, policies, tokens = _look(flags, config, params)
        title = f"Streams of {flags.name}"
        sites = diagnostics.site_names(config.model)
        drawn = Path(picture).expanduser()
        figures.save_png(lambda: figures.stream_sheet(recorded, sites, title), drawn)
        print("", terminal(quantities.rows(recorded, sites)), "", sep="\n")
        if policies:
            print(terminal(policies), "", sep="\n")
        print(f"Mean over {tokens}. Mixing matrices drawn in {drawn}")
    else:
        print(f"\n{UNTAPPED}")
    if not (flags.html or flags.json):
        return
    summary, lines = read_run(Path(flags.name))
    findings = Findings(flags.name, config, parameters, cost, profile, recorded, tokens, policies, summary, lines)
    for file, write in ((flags.html, render), (flags.json, dump)):
        if file:
            _write(Path(file).expanduser(), lambda write=write: write(findings))


def _write(path: Path, content: Callable[[], str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with task("writing the report"), replacing(path) as file:
        file.write(content().encode())
    print(f"\nReport written to {path}")


def _look_ahead(config: RunConfig, machine: target.Target) -> None:
    """Prints memory, traffic and estimated time of the training step on a machine that need not be present."""
    with compiling_for(machine.chip.platform):
        config.validate()  # what kernels there are for that platform
        layers = config.model.execution.walk(config.model.depth)
    mesh = sharding.make_mesh(config.mesh, target.devices(machine))
    execution, data, train = config.model.execution, config.data, config.train
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    print(
        f"{config.name}: {parameter_rows(param_shapes(config.model))[-1]['count']:,} parameters, {execution.policy}, "
        f"layers {layers}, remat {execution.remat}\n"
        f"{machine.name}: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}\n"
        f"{data.batch_size} x {data.seq_len} tokens a step, in {train.accumulate} part(s)",
        flush=True,
    )
    try:
        with task("compiling the training step; this takes some minutes"):
            state, compiled = target.compile_step(config, machine, mesh)
    except target.DoesNotFit as fault:
        print(target.verdict(machine, fault.needed))
        return
    memory = compiled.memory_analysis()
    assert memory is not None  # only backends without this analysis return None
    print(target.verdict(machine, memory.peak_memory_in_bytes))
    print("", terminal(machine_rows(config, state, compiled, machine.chip)), sep="\n")
    if mesh.size > 1:
        print("", terminal(collective_rows(compiled.as_text())), sep="\n")
    if machine.chip.clock:
        print(f"\n{ESTIMATE}")


def _look(
    flags: Flags, config: RunConfig, params: Params | None
) -> tuple[quantities.Record, list[dict[str, Any]], str]:
    """Stream statistics, a table of them by numeric policy, and a description of the tokens they are averaged over."""
    params = _params(config, params)
    tokens, words = _tokens(flags, config)
    own = config.model.execution.policy
    recorded = {own: streams.measure(config, params, tokens)}
    for policy in flags.policies:
        if policy not in recorded:
            recorded[policy] = streams.measure(_under(config, policy), params, tokens)
    return recorded[own], quantities.policy_rows(recorded) if flags.policies else [], words


def _under(config: RunConfig, policy: PolicyName) -> RunConfig:
    return config.replace(model=config.model.replace(execution=config.model.execution.replace(policy=policy)))


def _params(config: RunConfig, params: Params | None) -> Params:
    """These, or fresh ones."""
    return mhc_jax.init(config.model, jax.random.key(config.train.seed)) if params is None else params


def _tokens(flags: Flags, config: RunConfig) -> tuple[Batch, str]:
    """Input tokens for the model and their description: real text if the run names a source."""
    folder = Path(flags.name)
    says = (folder / RUN_FILE).is_file() or (folder.is_dir() and not (folder / "model.safetensors").is_file())
    if flags.tokens and says:
        try:
            rows = streams.validation_rows(config, flags.tokens)
            return rows, f"{rows['inputs'].size:,} validation tokens of {config.data.label}"
        except (ConfigError, OSError) as error:
            print(f"\nno validation tokens: {error}")
    tokens = streams.some_tokens(config)
    return tokens, f"{tokens['inputs'].size} made-up tokens"


def _picture(name: str) -> str:
    return str(Path(name, "mixing.png")) if _is_run(name) else f"mixing-{name}.png"


def _is_run(name: str) -> bool:
    return Path(name).is_dir()


def _defaults(name: str) -> Flags:
    # A slash is in no name: of a misspelt path, load_run says so.
    config = load_run(name)[0] if _is_run(name) or "/" in name else named.load(name)
    return Flags(name, **{part: getattr(config, part) for part in PARTS})


if __name__ == "__main__":
    cli.run(main)
