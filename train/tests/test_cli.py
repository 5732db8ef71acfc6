"""The command: what it lists, how it fails, and what it loads."""

import os
import subprocess
import sys

import pytest

import configs
import train.__main__ as command
from mhc_jax import registry
from train import cli
from train.launch import DistributedConfig, join
from train.run import NonFiniteError
from train.tests.runs import tiny_run


def call(monkeypatch, *argv):
    """The exit status of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    try:
        cli.run(command.main)
    except SystemExit as exit:
        return exit.code
    return 0


@pytest.fixture
def tiny(tmp_path):
    """A configuration registered for one test."""
    config = tiny_run(tmp_path)
    registry.register("config", "tiny_for_test")(lambda: config)
    yield config
    del registry._REGISTRY["config"]["tiny_for_test"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["mhc_ssn"], "unknown config 'mhc_ssn'; did you mean 'mhc_ssm'?"),
        (["mhc_ssm", "--optim.lrr", "3"], "--optim.lrr, 3; did you mean --optim.lr?"),
        (["mhc_ssm", "--model.residual.stream", "3"], "did you mean --model.residual.streams?"),
        (["mhc_ssm", "--optim.lr", "fast"], "--optim.lr: could not convert string to float: 'fast'"),
        (["mhc_ssm", "--data.batch-size", "1.5"], "--data.batch-size: invalid literal for int()"),
        (["mhc_ssm", "--optim.decay", "some"], "invalid choice 'some' for argument '--optim.decay'"),
        (["mhc_ssm", "--train.resume"], "Missing value for argument '--train.resume'"),
        (["--optim.lr", "1", "mhc_ssm"], "the name of a configuration comes first"),
        (["mhc_ssm", "--import", "no_such_module"], "--import no_such_module: No module named 'no_such_module'"),
        (["mhc_ssm", "--distributed.num-processes", "2"], "give --distributed.coordinator HOST:PORT"),
        (["mhc_ssm", "--distributed.coordinator", "h:1"], "needs --distributed.num-processes"),
        (["mhc_ssm", "--optim.lr", "-1"], "OptimConfig: lr must be positive, got -1.0"),
        (
            ["mhc_ssm", "--data.batch-size", "15", "--train.accumulate", "2"],
            "15 is not a multiple of train.accumulate 2",
        ),
        (["mhc_ssm_baseline", "--train.stream-diversity", "1"], "train.stream_diversity needs a residual with streams"),
        (["mhc_ssm", "--model.max-len", "8"], "model.max_len 8 is shorter than data.seq_len 256"),
        (["mhc_ssm", "--model.vocab-size", "99"], "model.vocab_size 99 is smaller than the 50257 tokens of"),
        (["mhc_ssm", "--mesh.tensor", "64"], "does not use exactly the"),
        (["mhc_ssm", "--data.source", "/no/such/file.txt"], "/no/such/file.txt"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(argv, says, monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, *argv, *(["--run-dir", str(tmp_path / "run")] if argv[0] in configs.names() else [])) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_real_command_fails_the_same_way(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "train", "mhc_ssm", "--optim.lrr", "3"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "error: Unrecognized options: --optim.lrr, 3; did you mean --optim.lr?\n"


def test_without_a_name_the_configurations_are_listed(monkeypatch, capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert call(monkeypatch, *argv) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in configs.names())


@pytest.mark.parametrize("name", configs.names())
def test_help_shows_every_flag_with_its_type(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    out = capsys.readouterr().out
    for flag in (
        "--model.width INT",
        "--optim.lr FLOAT",
        "--train.resume {True,False}",
        "--optim.decay {matrices,kernels,all}",
    ):
        assert flag in out
    assert ("--model.adapters.rank INT" in out) == ("adapters" in name)
    assert "--import" in out
    assert "--distributed.coordinator STR" in out


def test_flags_change_the_configuration_they_name(monkeypatch, tiny):
    seen = []
    monkeypatch.setattr(command, "run", lambda config, resume_command: seen.append((config, resume_command)))
    flags = ["--optim.lr", "0.5", "--model.mixer.conv-kernel", "5", "--train.resume", "False"]
    assert call(monkeypatch, "tiny_for_test", *flags) == 0
    (config, resume_command), expected = (
        seen[0],
        tiny.replace(
            optim=tiny.optim.replace(lr=0.5), model=tiny.model.replace(mixer=tiny.model.mixer.replace(conv_kernel=5))
        ),
    )
    assert config == expected
    assert resume_command == f"python -m train tiny_for_test {' '.join(flags)} --train.resume True"


def test_plugin_registers_a_configuration(monkeypatch, tmp_path):
    (tmp_path / "my_lab.py").write_text(
        "from mhc_jax.registry import register\n"
        "from train.config import RunConfig\n\n\n"
        '@register("config", "my_lab_run")\n'
        'def mine():\n    """Mine."""\n    return RunConfig(name="my_lab_run")\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setattr(command, "run", lambda config, resume_command: seen.append(config.name))
    try:
        assert call(monkeypatch, "--import", "my_lab", "my_lab_run", "--optim.lr", "1") == 0
        assert seen == ["my_lab_run"]
    finally:
        registry._REGISTRY["config"].pop("my_lab_run", None)


def test_a_run_that_is_no_longer_finite_exits_with_status_3(monkeypatch, tiny, capsys):
    def diverge(config, resume_command):
        raise NonFiniteError("4 steps in a row")

    monkeypatch.setattr(command, "run", diverge)
    assert call(monkeypatch, "tiny_for_test") == 3
    assert capsys.readouterr().err == "error: 4 steps in a row\n"


def test_place_among_processes_comes_from_flags_before_the_environment(monkeypatch):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args: calls.append(args))
    for name, value in (("COORDINATOR", "env:1"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv(f"MHC_JAX_{name}", value)
    join(DistributedConfig())
    join(DistributedConfig(coordinator="flag:2", process_id=0))
    join(DistributedConfig(coordinator="auto"))
    assert calls == [("env:1", 4, 3), ("flag:2", 4, 0), ()]
    monkeypatch.setenv("MHC_JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="MHC_JAX_PROCESS_ID must be a number, got 'first'"):
        join(DistributedConfig())
