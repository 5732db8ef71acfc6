"""Monty's worker under bubblewrap: a second wall around an interpreter that is young."""

import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mhc_jax.rlm.environments import bwrap
from mhc_jax.rlm.environments.base import SandboxUnavailable
from mhc_jax.rlm.environments.monty import Monty
from mhc_jax.rlm.limits import Limits


class HardenedMonty(Monty):
    """Monty without files, network and capabilities, under no user's id; see :class:`Monty`."""

    name = "monty+bwrap"

    def __init__(self, limits: Limits = Limits(), *, seed: int = 0):
        super().__init__(limits, seed=seed)
        self._folder: tempfile.TemporaryDirectory | None = None

    def _open(self, functions: Mapping[str, Callable[..., Any]], dump: bytes | None = None) -> None:
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxUnavailable(f"{self.name} needs bubblewrap, which is not to be had here; {bwrap.INSTALL}")
        self._folder = tempfile.TemporaryDirectory()
        self._binary = Path(self._folder.name, "monty")
        worker = shutil.which("monty", path=sysconfig.get_path("scripts")) or shutil.which("monty") or "monty"
        words = [program, *bwrap.WALLS, "--ro-bind", worker, "/monty", "--remount-ro", "/", "--", "/monty"]
        script = f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'
        # Written by a process of its own: what another thread starts meanwhile would hold it open, and it "busy".
        write = ["/bin/sh", "-c", 'cat > "$0" && chmod 700 "$0"', str(self._binary)]
        subprocess.run(write, input=script, text=True, check=True)
        try:
            super()._open(functions, dump)
        except SandboxUnavailable as error:
            raise SandboxUnavailable(f"under bubblewrap, {error}; {bwrap.OTHERWISE}") from error

    def close(self) -> None:
        super().close()
        if self._folder is not None:
            self._folder.cleanup()
