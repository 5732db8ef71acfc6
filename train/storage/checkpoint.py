"""Checkpoints of a run: asynchronous and atomic through Orbax, each file certified by a digest.

``RUN/checkpoints/STEP/`` holds the items ``state`` (parameters, optimizer, counters), ``data`` (position in the
data) and ``meta``, and ``manifest.sha256``. Orbax writes under a temporary name and renames when all is there, but
does not notice a file that later loses or changes bytes; the manifest does. It has the format of ``sha256sum``.
Anything else with a number for a name is not a checkpoint, and is not touched.
``RUN/checkpoints/scores.json`` holds the metrics of steps that were measured after they were saved.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.tree import dotted
from train.data.files import replacing
from train.devices import peers
from train.storage import manifest
from train.storage.manifest import Status
from train.storage.retention import LatestAndBest, Steps, is_checkpoint, is_foreign
from train.update.state import TrainState

# Errors of a file system that refuses a write.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
SCORES = "scores.json"


class CheckpointError(ConfigError):
    """No usable checkpoint, or one that does not fit. The message names fault and fix."""


class Checkpoints:
    """The checkpoints of one run directory. Reading creates nothing; leaving the context waits for the last save.

    With several processes all of them call every method, and ``run_dir`` is on storage that they share.
    """

    def __init__(self, run_dir: Path, keep: int):
        self.directory = Path(run_dir).absolute() / "checkpoints"
        self.keep = keep
        self._worker = ThreadPoolExecutor(1, "seal-checkpoint")
        self._sealing: Future[None] | None = None
        self._metrics: dict[int, float | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if fault is None:
                raise
            _warn(str(error))
        finally:
            self._worker.shutdown()
            if "_manager" in vars(self):
                # A save that failed fails here once more; it has been reported.
                with contextlib.suppress(Exception):
                    self._manager.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Orbax also logs the errors that it raises, with a traceback.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _ignore_writes_left_behind()
        self.directory.mkdir(parents=True, exist_ok=True)
        if foreign := [path.name for path in self.directory.iterdir() if is_foreign(path)]:
            _warn(f"in {self.directory}, {', '.join(sorted(foreign))} is not a checkpoint and is left alone")
        self._metrics.update({step: self.metric(step) for step in self.steps()})
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestAndBest(self.keep, self._metrics),
            step_name_format=Steps(),
            lightweight_initialize=True,  # a broken file in an old step must not stop the run
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, state: TrainState, data_state: dict[str, Any], meta: dict[str, Any], *, metric: float | None
    ) -> None:
        """Copies ``state`` off the devices and returns; a thread writes, commits and certifies it.

        Afterwards the ``keep`` latest steps and the one of lowest metric remain. Checkpoints of ``step`` and later
        are what a run left behind that has since resumed from an earlier step: they are deleted first.

        Args:
            step: optimizer steps done.
            state: may be donated as soon as this returns.
            data_state: JSON-compatible position in the data.
            meta: JSON-compatible.
            metric: lower is better; None or not finite is never the best.

        Raises:
            CheckpointError: a parameter is not finite (nothing is written), something else has the checkpoint's name,
                or this or the previous save failed.
        """
        self.wait()
        if not _finite(state.params):
            raise CheckpointError(f"step {step}: a parameter is NaN or infinite; this state is not saved")
        path = self.directory / str(step)
        if os.path.lexists(path) and not is_checkpoint(path):
            raise _in_the_way(path)
        metric = metric if metric is not None and math.isfinite(metric) else None
        self._metrics[step] = metric
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_flat(state)),
            data=ocp.args.JsonSave(data_state),
            meta=ocp.args.JsonSave({"metric": metric, "meta": meta}),
        )
        with self._writing(step):
            for abandoned in [found for found in self._manager.all_steps() if found >= step]:
                self._manager.delete(abandoned)
            self._write_scores({found: score for found, score in self._scores().items() if int(found) < step})
            self._manager.save(step, args=items, force=True)
        self._sealing = self._worker.submit(self._seal, step)

    def score(self, step: int, metric: float) -> None:
        """Files the metric of a step that was saved before it was measured."""
        self._metrics[step] = metric if math.isfinite(metric) else None
        with self._writing(step):
            self._write_scores(self._scores() | {str(step): self._metrics[step]})

    def wait(self) -> None:
        """Returns when the last save is committed and certified.

        Raises:
            CheckpointError: it could not be written; earlier checkpoints are intact.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def _seal(self, step: int) -> None:
        with self._writing(step):
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                manifest.seal(self.directory / str(step))
            peers.follow(f"sealed/{step}")

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns the errors that Orbax raises on a full or read-only disk into one line."""
        try:
            yield
        except Exception as error:
            sealed = [found for found in self.steps() if found != step and manifest.exists(self.directory / str(found))]
            safe = f"the last good checkpoint is step {sealed[-1]}" if sealed else "no earlier checkpoint exists"
            raise CheckpointError(
                f"step {step} could not be written to {self.directory} ({_reason(error)}); {safe}; "
                "make room or set the permissions there, then resume"
            ) from error

    def check_way(self) -> None:
        """Raises CheckpointError if something that is none has the name of a checkpoint that is still to come."""
        last = self.latest_step() or 0
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            if is_foreign(path) and int(path.name) > last:
                raise _in_the_way(path)

    def steps(self) -> list[int]:
        """Committed steps in order; they may be damaged."""
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(path.name) for path in found if is_checkpoint(path))

    def latest_step(self) -> int | None:
        """The last committed step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The committed step of lowest metric; without any metric the latest; None without checkpoints."""
        return next(iter(self._by_metric()), None)

    def _by_metric(self) -> list[int]:
        """Steps from best to worst; those without a metric last, the later first."""
        metric = {step: self.metric(step) for step in self.steps()}
        return sorted(metric, key=lambda step: (math.inf if metric[step] is None else metric[step], -step))

    def metric(self, step: int) -> float | None:
        """None also for a step with unreadable metadata: it is damaged, which is noticed before it is used."""
        scores = self._scores()
        if str(step) in scores:
            return scores[str(step)]
        try:
            return _read_json(self.directory / str(step) / "meta")["metric"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _scores(self) -> dict[str, float | None]:
        """The record of :meth:`score`; empty if it cannot be read."""
        try:
            scores = json.loads((self.directory / SCORES).read_bytes())
            return {str(int(step)): None if metric is None else float(metric) for step, metric in scores.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return {}

    def _write_scores(self, scores: dict[str, float | None]) -> None:
        if jax.process_index() == 0 and scores != self._scores():
            with replacing(self.directory / SCORES) as file:
                file.write(json.dumps(scores).encode())

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
        """The latest good checkpoint, or that of ``step``, as ``(state, data_state, meta)``.

        A damaged latest checkpoint costs a warning line, and the one before is used. Checkpoints whose writer was
        stopped before it could certify them are certified now, if they can be read.

        Args:
            abstract_state: shapes, dtypes and shardings to restore to, of any mesh.
            step: this step or none.

        Raises:
            CheckpointError: no good checkpoint, or one of another structure or other shapes (all are listed).
        """

        def read(path: Path) -> tuple[TrainState, dict[str, Any], dict[str, Any]]:
            flat = _read_arrays(path / "state", _flat(abstract_state))
            leaves = [flat[name] for name in _flat(abstract_state)]
            state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
            meta = _read_json(path / "meta")["meta"]
            if "corpus" in meta:  # as earlier versions called it
                meta["data"] = meta.pop("corpus")
            return state, _read_json(path / "data"), meta

        self.wait()
        found = self._first_good(read, reversed(self.steps()) if step is None else [step])
        self._certify(read)
        return found

    def _certify(self, read: Callable[[Path], Any]) -> None:
        for step in self.steps():
            path = self.directory / str(step)
            if _agreed(manifest.exists(path)):
                continue
            try:
                read(path)
            except Exception:  # named as soon as it would be the one to use
                continue
            # What refuses this file will refuse the next save too, and is named then.
            with contextlib.suppress(OSError):
                if jax.process_index() == 0:
                    manifest.seal(path)

    def restore_params(self, shapes: Params, which: Literal["best", "last"] | int, tree: str = "params") -> Params:
        """The parameters alone, of the best or the last good checkpoint, or of that step; see :meth:`restore`.

        Args:
            shapes: abstract parameters; without shardings they come to the first local device.
            tree: ``"ema"`` for their moving average.
        """

        def read(path: Path) -> Params:
            wanted = _flat({tree: shapes})
            flat = _read_arrays(path / "state", wanted, only=f"{tree}.")
            return jax.tree.unflatten(jax.tree.structure(shapes), [flat[name] for name in wanted])

        self.wait()
        if isinstance(which, int):
            return self._first_good(read, [which])
        return self._first_good(read, self._by_metric() if which == "best" else reversed(self.steps()))

    def _first_good(self, read: Callable[[Path], Any], candidates: Iterable[int]) -> Any:
        faults = []
        for step in candidates:
            path = self.directory / str(step)
            status, fault = _examine(path)
            if status != Status.BAD:
                try:
                    found = read(path)
                except CheckpointError:
                    raise
                except Exception as error:  # any error that a half-written file causes
                    if status == Status.GOOD:
                        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
                    fault = f"{fault} and cannot be read ({_first_line(error)})"
                else:
                    if faults or fault:
                        _warn("; ".join([*faults, f"using {path}" + (f", which {fault}" if fault else "")]))
                    return found
            faults.append(f"{path} {fault}")
        raise CheckpointError("; ".join([f"no good checkpoint in {self.directory}", *faults]))


def _examine(path: Path) -> tuple[Status, str]:
    """The result or error of process 0: all processes must choose the same checkpoint."""
    status, fault = manifest.verify(path) if jax.process_index() == 0 else (Status.GOOD, "")
    return Status(_agreed(status)), fault


def _agreed(value: int) -> int:
    """Process 0's."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def _warn(text: str) -> None:
    if jax.process_index() == 0:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _reason(error: BaseException) -> str:
    """The operating system's word for the fault, wherever in the chain or the text of the errors it is."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        for words in map(os.strerror, REFUSALS):
            if words.lower() in str(link).lower():
                return words
        link = link.__cause__ or link.__context__
    return _first_line(error)[:300]


def _flat(tree: Any) -> dict[str, Any]:
    """``{"params.embed.tokens": leaf, ...}``: independent of the classes of which state and optimizer are made."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@jax.jit
def _finite(params: Params) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def _read_json(path: Path) -> Any:
    return json.loads((path / "metadata").read_text(encoding="utf-8"))


def _read_arrays(path: Path, wanted: dict[str, Any], *, only: str = "") -> dict[str, jax.Array]:
    """The arrays named ``wanted``, which must be all that are saved under the prefix ``only``.

    Raises:
        CheckpointError: names, shapes or dtypes differ; all differences are listed.
    """
    saved = ocp.StandardCheckpointHandler().metadata(path).tree
    saved = {name: leaf for name, leaf in saved.items() if name.startswith(only)}
    if differences := [text for name in sorted({*saved, *wanted}) if (text := _difference(name, saved, wanted))]:
        raise CheckpointError(f"{path.parent} does not fit this configuration: {'; '.join(differences)}")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in wanted.items()
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(path, args=args)


def _difference(name: str, saved: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    if name not in saved:
        return f"{name} is missing from the checkpoint"
    if name not in wanted:
        return f"{name} is only in the checkpoint"
    there, here = ((tuple(leaf.shape), jnp.dtype(leaf.dtype).name) for leaf in (saved[name], wanted[name]))
    return None if there == here else f"{name} is {_spell(there)} in the checkpoint, {_spell(here)} here"


def _spell(shape_and_dtype: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = shape_and_dtype
    return f"{dtype}[{','.join(map(str, shape))}]"


@functools.cache
def _ignore_writes_left_behind() -> None:
    """When one write of a save has failed, others end in threads of TensorStore that nothing waits for."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def told(what: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
            hook(what)

    sys.unraisablehook = told


def _in_the_way(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is not a checkpoint and stands in the way of one; move it, then resume")
