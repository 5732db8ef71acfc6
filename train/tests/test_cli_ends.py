"""How a command ends when it is not its own work that stops it."""

import os
import re
import subprocess
import sys

import pytest

import train.__main__ as command
from mhc_jax.config import ConfigError
from mhc_jax.nn.residual import ResidualConfig
from train.terminal import cli


def test_a_reader_that_has_had_enough_is_no_fault():
    unread, output = os.pipe()
    os.close(unread)
    with os.fdopen(output, "w") as stdout:
        result = subprocess.run(
            [sys.executable, "-c", "from train.terminal import cli; cli.run(lambda _: print('a line'))"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_part_without_a_method_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: ResidualConfig().stream_count)
    assert stop.value.code == 2
    assert "ResidualConfig must define stream_count" in capsys.readouterr().err


def test_a_folder_is_no_configuration(tmp_path):
    advice = f"is a folder; give a file, such as {re.escape(str(tmp_path))}/config.json, or --resume a run"
    with pytest.raises(ConfigError, match=advice):
        command.main(["--config", str(tmp_path)])
