"""Garbage is collected again, and signals are its own, once a command has begun; a library changes neither."""

import os
import subprocess
import sys

import pytest

PLUGIN = """
import gc, signal
print("collecting", gc.isenabled(), "frozen", gc.get_freeze_count() > 0, flush=True)
"""
LIBRARY = """
import gc, signal, train
print("collecting", gc.isenabled(), "signals", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
"""


def printed(folder, *argv):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run(
        [sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=120, check=False
    ).stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("module", [["-m", "train"], ["-mtrain.evaluate", "nowhere"], ["-um", "train.evaluate", "x"]])
def test_a_command_collects_what_it_leaves_but_not_what_it_loaded(tmp_path, module):
    (tmp_path / "told.py").write_text(PLUGIN)
    assert printed(tmp_path, *module, "--import", "told")[0] == "collecting True frozen True"


@pytest.mark.parametrize("argv", [["-c", LIBRARY], ["-m", "other"]])
def test_a_library_changes_nothing(tmp_path, argv):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text(LIBRARY)
    (tmp_path / "other" / "__main__.py").write_text("import gc; assert gc.isenabled()")
    assert printed(tmp_path, *argv)[0] == "collecting True signals True"
