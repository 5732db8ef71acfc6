"""Set-up of a process before it computes: the compile cache, and its place among the processes of a run."""

import dataclasses
import os
import queue
from collections.abc import Sequence

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state

from mhc_jax.config import Config, ConfigError
from train.data.cache import default_cache_dir
from train.devices import peers
from train.devices.relay import Relay

TIMEOUT = 300  # seconds in which all processes must have been started


@dataclasses.dataclass(frozen=True)
class DistributedConfig(Config):
    """This process's place among those of a run; all of them are started with the same command.

    A value that is not given is taken from the environment: ``MHC_JAX_COORDINATOR``,
    ``MHC_JAX_NUM_PROCESSES``, ``MHC_JAX_PROCESS_ID``.

    Attributes:
        coordinator: ``HOST:PORT`` of process 0, the same for all; ``"auto"`` asks the cluster (SLURM,
            Kubernetes, TPU pods); empty for a single process.
        num_processes: number of processes.
        process_id: index of this process, from 0.
    """

    coordinator: str = ""
    num_processes: int | None = None
    process_id: int | None = None


def join(config: DistributedConfig) -> None:
    """Connects to the other processes, if there are any. Must run before anything that touches a device.

    Raises:
        ConfigError: an incomplete or impossible place, or a coordinator that cannot be reached.
    """
    coordinator = config.coordinator or os.environ.get("MHC_JAX_COORDINATOR", "")
    count = _number(config.num_processes, "MHC_JAX_NUM_PROCESSES")
    index = _number(config.process_id, "MHC_JAX_PROCESS_ID")
    if not coordinator:
        if count is not None or index is not None:
            raise ConfigError("several processes need a coordinator: give --distributed.coordinator HOST:PORT")
        return
    address, devices = coordinator, None
    try:
        if coordinator == "auto":
            address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, TIMEOUT
            )
        if address is None or count is None or index is None or not 0 <= index < count:
            raise ConfigError(
                "no cluster found for --distributed.coordinator auto; give HOST:PORT"
                if coordinator == "auto"
                else "--distributed.coordinator needs --distributed.num-processes N and --distributed.process-id "
                f"in 0..N-1, got {count} and {index}"
            )
        _connect(address, count, index, devices)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot join the processes at {coordinator}: {str(error).splitlines()[0]}") from error


def _connect(coordinator: str, count: int, index: int, devices: Sequence[int] | None) -> None:
    joined: queue.SimpleQueue[peers.Peers] = queue.SimpleQueue()
    relay = Relay(coordinator, lambda: joined.get().lost(0)) if index else None
    # JAX aborts a process whose peers are silent for so long; the watch of train.devices.peers must come first.
    patience = 4 * int(peers.SILENCE)
    jax.distributed.initialize(
        relay.address if relay else coordinator,
        count,
        index,
        devices,
        initialization_timeout=TIMEOUT,
        heartbeat_timeout_seconds=patience,
    )
    if relay:
        relay.close_door()
    joined.put(peers.start(global_state.client, index, count))


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or not text:
        return given
    if not text.isdecimal():
        raise ConfigError(f"environment variable {variable} must be a number, got {text!r}")
    return int(text)


def use_compile_cache() -> None:
    """Keeps compiled programs in ``~/.cache/mhc_jax/xla`` for later runs, unless JAX has another folder."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
