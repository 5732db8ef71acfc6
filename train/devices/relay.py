"""A process's line to the coordinator, that of process 0, which stays open on this side when the other side is gone.

JAX aborts a process with a stack trace as soon as its connection to the coordinator closes. Here the connection ends
at a relay in the process itself, which hears of the loss first and can say it in one line.
"""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


class Relay:
    """Passes bytes between a socket of this machine and the coordinator.

    Attributes:
        address: to be given to JAX as the coordinator's.
    """

    def __init__(self, coordinator: str, lost: Callable[[], None]):
        """Starts to listen.

        Args:
            coordinator: ``HOST:PORT``.
            lost: called in a separate thread when the coordinator closes a connection.
        """
        host, _, port = coordinator.rpartition(":")
        self._coordinator, self._lost = (host.strip("[]"), int(port)), lost
        self._folder = tempfile.TemporaryDirectory(prefix="mhc_jax-")
        path = Path(self._folder.name, "coordinator")
        self.address = f"unix:{path}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        _thread(self._accept)

    def close_door(self) -> None:
        """No further connections; those that exist stay."""
        self._server.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._coordinator, timeout=10)
            except OSError:  # not there yet: JAX tries again
                near.close()
                continue
            far.settimeout(None)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread(self._upwards, near, far)
            _thread(self._downwards, far, near)

    def _upwards(self, near: socket.socket, far: socket.socket) -> None:
        _copy(near, far)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _downwards(self, far: socket.socket, near: socket.socket) -> None:
        _copy(far, near)
        self._lost()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def _thread(target: Callable[..., None], *args: socket.socket) -> None:
    threading.Thread(target=target, args=args, name="relay", daemon=True).start()
