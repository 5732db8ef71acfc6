"""One writer of a run's folder: a lock that the operating system lets go of with the process, however it ends.

Under NFS a lock holds between hosts where the server supports it (version 4, or 3 with its lock daemon).
"""

import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import IO

from mhc_jax.config import ConfigError

NAME = "run.lock"


def refuse_held(folder: Path) -> None:
    """Raises ConfigError if another process is writing to the run's folder now. Leaves nothing behind."""
    if (folder / NAME).is_file():
        with (folder / NAME).open(encoding="utf-8") as file:
            _lock(file, fcntl.LOCK_SH)


def take(folder: Path) -> IO[str]:
    """Locks the run's folder until the file that is returned is closed.

    Args:
        folder: exists; several processes of one run have process 0 take it for them.

    Raises:
        ConfigError: another process holds the lock; its number and host are named.
    """
    # Never removed: whoever waits for a removed file locks nothing.
    file = (folder / NAME).open("a+", encoding="utf-8")
    _lock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _lock(file: IO[str], kind: int) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        folder = Path(file.name).parent
        raise ConfigError(
            f"{folder} is being written by {holder}; wait until it has ended, or choose another --run-dir"
        ) from None
    except OSError as error:
        print(f"warning: {file.name} cannot be locked ({error.strerror}): start no second run there", file=sys.stderr)
