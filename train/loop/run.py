"""One training run from start to finish: everything that happens, in the order in which it happens."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mhc_jax import accounting
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params, parameter_count
from train.config import RunConfig
from train.data.files import replacing
from train.data.kind import Data
from train.devices import peers, sharding
from train.devices.memory import TRAINING, check_memory, most_used
from train.loop.introduction import introduce
from train.loop.resolve import check_resumes, finished, must_agree, refuse_overwrite, resolve, run_folder
from train.loop.teacher import place, with_teacher
from train.measure import streams
from train.measure.log import Mean, MetricsLog, check_sinks
from train.measure.lowering import abstract_state, lower_train_step, shardings, whole
from train.measure.profiler import Profiler
from train.measure.scores import evaluate
from train.measure.speed import Meter
from train.measure.versions import versions
from train.report.losses import plot_losses
from train.storage import lock
from train.storage.checkpoint import Checkpoints
from train.storage.folder import CONFIG_FILE, EPILOGUE_FILE, SUMMARY_FILE
from train.storage.restore import load_run
from train.terminal.console import Display, say, task
from train.terminal.interrupt import Interrupt, Interrupted, advising
from train.update.optimizer import make_optimizer
from train.update.state import TrainState, trained_info
from train.update.step import init_state, make_eval_step


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        params: trained parameters, on the devices of the run.
        summary: contents of ``summary.json``.
        ema: their moving average; None under an ``optim.ema`` of 0.
    """

    params: Params
    summary: dict[str, Any]
    ema: Params | None = None


def run(
    config: RunConfig,
    *,
    callbacks: Sequence[Callable[[int, dict[str, float]], None]] = (),
    resume_command: str = "the same command with --train.resume",
) -> Result:
    """Trains, evaluates and writes the run's folder; with ``train.resume`` continues the run there.

    SIGTERM or SIGINT finishes the current step and saves. A run to be resumed that has nothing left to do says so.

    Args:
        config: configuration; a ``vocab_size`` or ``max_len`` of None in the model follows the data.
        callbacks: called with the step and its values whenever a line is written to ``metrics.jsonl``.
        resume_command: command to print when the run is interrupted.

    Raises:
        ConfigError: anything wrong with configuration, data, checkpoint or folder, before training starts.
        Interrupted: a signal arrived; the text says what is saved and how to resume.
        NonFiniteError: ``train.max_nonfinite`` steps in a row were skipped.
    """
    started = time.monotonic()
    peers.agree("start", {**must_agree(config), **{f"the version of {name}": v for name, v in versions().items()}})
    peers.agree("devices", {"their devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"})
    refuse_overwrite(config)
    lock.refuse_held(run_folder(config))
    check_sinks(config.log)
    config, teacher = with_teacher(resolve(config))
    check_memory(config.model, TRAINING + (config.optim.ema > 0))
    check_resumes(config)
    streams.check(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check(config, mesh)
    host, hosts = sharding.host_slice(mesh)
    if summary := finished(config):
        return _nothing_left(config, summary)

    data = config.data.load()
    peers.agree("data", {f"{config.data.identity} (SHA-256)": data.fingerprint})
    epoch = data.steps_per_epoch()
    total_steps = config.train.steps or config.train.epochs * epoch
    if summary := finished(config, total_steps):
        return _nothing_left(config, summary)
    batches = data.train(host, hosts)
    validation = data.evaluation("validation", host, hosts)
    # Those of the evaluations by which the best state is chosen.
    judged = min(config.train.eval_batches or len(validation), len(validation))
    baselines = data.baselines(config.model.vocab_size)

    optimizer = make_optimizer(config.optim, total_steps, trained_info(config))
    abstract = abstract_state(config, optimizer, mesh)
    parameters = parameter_count(config.model)
    introduce(config, data, mesh, parameters, total_steps, baselines)

    with _claim(config) as folder, Checkpoints(folder, config.checkpoint.keep) as checkpoints:
        checkpoints.check_way()
        resuming = config.train.resume and checkpoints.latest_step() is not None
        if resuming:
            state, position, meta = checkpoints.restore(abstract)
            if not data.begun_as(meta["data"]):
                raise ConfigError(
                    f"cannot resume {folder}: {config.data.identity} is not what the run began with; "
                    "give the same data, or choose another --run-dir"
                )
            batches.set_state(position)
            say(f"resumed {folder} at step {int(state.step)}")
        else:
            if config.train.resume:
                say(f"no finished checkpoint in {folder}: starting at the beginning")
            initialise = functools.partial(init_state, config, optimizer, data.targets_share())
            with task("initialising parameters"):
                state, meta = jax.jit(initialise, out_shardings=shardings(abstract))(), {}
        start, seconds_before = int(state.step), meta.get("seconds", 0.0)
        scored = [meta.get("best_val_loss"), checkpoints.metric(start)]
        best = min((loss for loss in scored if loss is not None), default=math.inf)
        # What follows saving the state of a step is made up for if the run was stopped before it.
        owed = start == total_steps or (
            start > 0 and _due(start, config.train.eval_every) and checkpoints.metric(start) is None
        )

        log = MetricsLog(folder, config, start=start, scored=not owed, callbacks=callbacks)
        compile_seconds = 0.0
        if start < total_steps:
            train_step, compile_seconds = _compile_train_step(config, optimizer, abstract, mesh, total_steps)
            if teacher is not None:
                teacher = place(teacher, config.objective.teacher, mesh)
        eval_step = jax.jit(make_eval_step(config, mesh), out_shardings=whole(mesh))
        stream_step = jax.jit(streams.make_stream_step(config, mesh), out_shardings=whole(mesh))
        tokens_per_step = config.data.batch_size * config.data.seq_len
        meter = Meter(tokens_per_step, _flops_per_token(config), meta.get("speed"))
        mean_loss = Mean(meta.get("mean_loss"))
        profiler = Profiler(folder, config.log.profile)
        display = Display(start, total_steps, bar=config.log.progress)
        interrupt = Interrupt()
        resumes = f"in {folder}; resume with: {resume_command}"

        def seconds() -> float:
            return seconds_before + time.monotonic() - started

        def scores_of(state: TrainState, params: Params, count: int) -> dict[str, float]:
            some = (sharding.global_batch(batch, mesh) for batch in itertools.islice(validation, count))
            with task(f"evaluating {count} validation batches", count, quiet=int(state.step) < total_steps) as work:
                sums = evaluate(eval_step, params, work.over(interrupt.between(some)))
            scores = data.scores("validation", sums)
            del scores["tokens"]
            return scores

        def validate(state: TrainState, name: str, count: int) -> dict[str, float]:
            """Scores on some batches of the validation split, under names that begin with ``name``.

            Those of the average follow, as ``ema_loss`` and so on.
            """
            scores = scores_of(state, state.params, count)
            shown = data.shown(scores)
            if state.ema is not None:
                averaged = scores_of(state, state.ema, count)
                scores |= {f"ema_{score}": value for score, value in averaged.items()}
                shown += f"  val_ema_loss {averaged['loss']:.4f}"
            log.write(int(state.step), {f"{name}_{score}": value for score, value in scores.items()})
            part = "whole split" if count == len(validation) else f"{count} batch{'es' * (count > 1)}"
            say(f"step {int(state.step)}  {shown}  ({part})")
            return scores

        def look_at_streams(state: TrainState) -> None:
            """Stream statistics on the first micro-batch of the validation split."""
            found = stream_step(state.params, sharding.global_batch(next(iter(validation)), mesh))
            log.write_streams(int(state.step), streams.record(found))

        def save(state: TrainState, metric: float | None = None) -> None:
            meta = {
                "config": config.to_dict(),
                "data": data.fingerprint,
                "best_val_loss": best if math.isfinite(best) else None,
                "seconds": seconds(),
                "speed": meter.total(),
                "mean_loss": mean_loss.state,
            }
            checkpoints.save(int(state.step), state, batches.get_state(), meta, metric=metric)

        def draw() -> None:
            if jax.process_index() == 0:
                title = f"{config.name}: {parameters:,} parameters"
                plot_losses(folder, title=title, tokens_per_step=tokens_per_step, baselines=baselines)

        def stop(number: int, step: int) -> NoReturn:
            checkpoints.wait()
            draw()
            raise Interrupted(number, f"interrupted: saved step {step} {resumes}")

        def score(state: TrainState, *, saved: bool) -> dict[str, float]:
            """Scores by which the best state is chosen, always on the same batches; a state better than all is saved.

            Raises:
                Interrupted: a signal came; the state is saved and has no score.
            """
            nonlocal best
            try:
                found = validate(state, "val", judged)
            except Interrupted as request:
                if not saved:
                    save(state)
                stop(request.number, int(state.step))
            if saved:
                checkpoints.score(int(state.step), found["loss"])
            best, before = min(best, found["loss"]), best
            if not saved and best < before:
                save(state, best)
            return found

        def report(step: int, metrics: dict[str, jax.Array]) -> None:
            """Waits for a step's metrics, then logs them if it is time."""
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            meter.step()
            mean_loss.add(values["loss"])
            display.step(step)
            in_a_row = int(values.pop("consecutive_skipped"))
            due = step % config.log.every == 0
            if due or step in (start + 1, total_steps):
                values |= {"loss": mean_loss.read(forget=due), **meter.read()}
                log.write(step, values)
                display.metrics(step, values)
            if in_a_row >= config.train.max_nonfinite:
                raise NonFiniteError(
                    f"{in_a_row} steps in a row up to step {step} had a loss or gradient that is NaN or infinite; "
                    "all were skipped. Lower --optim.lr, lengthen --optim.warmup-steps, or set --optim.clip"
                )

        with log, display, interrupt, profiler:
            if owed and start < total_steps:
                score(state, saved=True)
            pending = None
            meter.restart()
            for step in range(start + 1, total_steps + 1):
                with meter.waiting():
                    batch = sharding.global_batch(next(batches), mesh)
                profiler.before(step)
                state, metrics = train_step(state, batch, teacher)
                profiler.after(step, metrics)
                # Read while this step runs, so that the device never waits for the host.
                if pending:
                    report(*pending)
                pending = (step, metrics)
                last = step == total_steps
                # Asking the other processes takes time, so they are asked when metrics are read anyway.
                may_stop = jax.process_count() == 1 or step % config.log.every == 0
                stopping = interrupt.requested() if may_stop else 0
                streams_due, eval_due = _due(step, config.log.streams_every), _due(step, config.train.eval_every)
                saving = bool(last or stopping or _due(step, config.checkpoint.every))
                if not (saving or eval_due or streams_due):
                    continue
                report(*pending)
                pending = None
                if streams_due:
                    look_at_streams(state)
                if saving:
                    save(state)
                if stopping:
                    stop(stopping, step)
                if eval_due and not last:
                    score(state, saved=saving)
                meter.restart()

            # Everything trained is saved, so nothing below can lose it, and a resumed run begins here.
            final = score(state, saved=True)
            if judged < len(validation):
                try:
                    final = validate(state, "final_val", len(validation))
                except Interrupted as request:
                    stop(request.number, total_steps)
            checkpoints.wait()

    summary = {
        **{f"val_{name}": value for name, value in final.items()},
        **{f"{name}_ppl": math.exp(loss) for name, loss in baselines.items()},
        "best_val_loss": best,
        "steps": total_steps,
        "skipped": int(state.skipped),
        "tokens": total_steps * config.data.batch_size * config.data.seq_len,
        "tokens_per_second": meter.average(),
        "params": parameters,
        "seconds": seconds(),
        "compile_seconds": compile_seconds,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **most_used(),
        "versions": versions(),
    }
    with advising(f"interrupted: step {total_steps} is saved {resumes}"):
        draw()
        _finish(config, folder, data, state.params, summary)
    return Result(state.params, summary, state.ema)


def _nothing_left(config: RunConfig, summary: dict[str, Any]) -> Result:
    say(
        f"{run_folder(config)} is finished: {summary['steps']:,} steps, validation loss {summary['val_loss']:.4f}; "
        "to go on, give more --train.steps"
    )
    folder = run_folder(config)
    ema = load_run(folder, "last", ema=True)[1] if config.optim.ema else None
    return Result(load_run(folder, "last")[1], summary, ema)


def _flops_per_token(config: RunConfig) -> int:
    """Operations of one token in training: those of the model, and of its teacher's forward pass."""
    length, teacher = config.data.seq_len, config.objective.teacher
    taught = 0 if teacher is None else accounting.summary(teacher.known, length).forward_flops
    return accounting.flops_per_token(config.model, length) + taught


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _compile_train_step(config: RunConfig, optimizer, state: TrainState, mesh: Mesh, total_steps: int):
    """The training step compiled for this state and batch and no other, and the seconds that took."""
    start = time.perf_counter()
    execution, depth = config.model.execution, config.model.depth
    unrolled = depth > 0 and execution.layers == "auto" and execution.walk(depth) == "unroll"
    with task("compiling the training step" + f", {depth} layers without a loop" * unrolled):
        compiled = lower_train_step(config, optimizer, state, mesh, total_steps).compile()
    seconds = time.perf_counter() - start
    say(f"compiled the training step in {seconds:.1f} s")
    return compiled, seconds


@contextlib.contextmanager
def _claim(config: RunConfig) -> Iterator[Path]:
    """The run's folder, locked, with the configuration in it."""
    folder = run_folder(config)
    if jax.process_count() > 1:
        # Every process has looked whether the folder is free before one of them takes it.
        multihost_utils.sync_global_devices("claim the run folder")
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock.take(folder))
                refuse_overwrite(config)  # another run may have come and gone since
                # Written elsewhere first: a run killed while it resumes must not lose its configuration.
                written = folder / f"{CONFIG_FILE}.tmp"
                written.write_text(config.to_json(), encoding="utf-8")
                written.replace(folder / CONFIG_FILE)
            except OSError as error:
                raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another --run-dir") from error
        yield folder


def _finish(config: RunConfig, folder: Path, data: Data, params: Params, summary: dict[str, Any]) -> None:
    """The data's epilogue, and the summary."""
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() != 0:
        return
    if words := data.epilogue(config.model, params, config.train.seed):
        (folder / EPILOGUE_FILE).write_text(words + "\n", encoding="utf-8")
    # Last: a run with a summary has nothing left to do.
    with replacing(folder / SUMMARY_FILE) as file:
        file.write(f"{json.dumps(summary, indent=2)}\n".encode())
    speed = f", {summary['tokens_per_second']:,.0f} tokens/s" if summary["tokens_per_second"] else ""
    say(f"{data.closing(summary)}{speed}\nwritten to {folder}")
