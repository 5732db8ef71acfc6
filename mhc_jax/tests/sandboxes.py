"""What the tests of sandboxes share."""

import shutil
import subprocess

import pytest


def missing():
    """Why bubblewrap is not to be had here; empty if it is."""
    program = shutil.which("bwrap")
    if program is None:
        return "bubblewrap is not installed"
    ran = subprocess.run([program, "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    return f"bubblewrap does not start here: {ran.stderr}" if ran.returncode else ""


def need_bwrap():
    """Skips the test where bubblewrap is not to be had, which no package of Python brings."""
    if reason := missing():
        pytest.skip(reason)
