"""The command: what it lists, how it fails, and what it loads."""

import os
import re
import subprocess
import sys

import pytest

import configs
import train.__main__ as command
from mhc_jax import registry
from mhc_jax.nn.mixers import AttentionConfig
from train.devices.launch import DistributedConfig, join
from train.loop import run as loop
from train.terminal import cli
from train.terminal.flags import FOREIGN, flags_of
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
        (["mhc_ssm", "--optim.lrr", "3"], "unknown flag --optim.lrr; did you mean --optim.lr?"),
        (["mhc_ssm", "--model.residual.stream", "3"], "did you mean --model.residual.streams?"),
        (["mhc_ssm", "--lr", "3"], "unknown flag --lr; did you mean --optim.lr?"),
        (["mhc_ssm", "--batch_size=3"], "unknown flag --batch_size; did you mean --data.batch-size?"),
        (["mhc_ssm", "--learning-rate", "3"], "unknown flag --learning-rate: use --optim.lr"),
        (["mhc_ssm", "--max_iters", "3"], "unknown flag --max_iters: use --train.steps"),
        (["mhc_ssm", "--training.seq_len", "3"], "unknown flag --training.seq_len; did you mean --data.seq-len?"),
        (["mhc_ssm", "--compile"], "unknown flag --compile: the training step is always compiled"),
        (["mhc_ssm", "--seed", "3"], "unknown flag --seed; did you mean --data.seed or --train.seed?"),
        (["mhc_ssm", "--zzzzzzzz", "3"], "unknown flag --zzzzzzzz; --help shows the flags"),
        (["--optim.lr", "1", "mhc_ssm"], "the name of a configuration comes first"),
        (["mhc_ssm", "--import", "no_such_module"], "--import no_such_module: No module named 'no_such_module'"),
        (["mhc_ssm", "--distributed.num-processes", "2"], "give --distributed.coordinator HOST:PORT"),
        (["mhc_ssm", "--distributed.coordinator", "h:1"], "needs --distributed.num-processes"),
        (["mhc_ssm", "--optim.lr", "-1"], "--optim.lr must be positive, got -1.0"),
        (
            ["mhc_ssm", "--data.batch-size", "15", "--train.accumulate", "2"],
            "--data.batch-size 15 is not a multiple of --train.accumulate 2",
        ),
        (["gpt2", "--model.mixer.no-causal"], "tokens see later ones"),
        (["gpt2", "--model.head", "dense", "--model.outputs", "9"], "outputs 9 are not the"),
        (["mhc_ssm_baseline", "--model.stream-diversity", "1"], "--model.stream-diversity needs a residual with"),
        (["mhc_ssm", "--optim.lr", "inf"], "--optim.lr must be finite, got inf"),
        (["mhc_ssm", "--optim.eps", "1e-60"], "--optim.eps must be at least 1.2e-38"),
        (["mhc_ssm", "--train.seed", str(2**63)], "--train.seed must fit 64 bits"),
        (["mhc_ssm", "--train.seed", str(2**32)], "--train.seed must lie in 0 .. 4294967295, got 4294967296"),
        (["mhc_ssm", "--train.steps", str(2**31)], "--train.steps must be below 2**31, got 2147483648"),
        (["mhc_ssm", "--data.seq-len", "0"], "--data.seq-len must be at least 1, got 0"),
        (["mhc_ssm", "--model.mixer.conv-kernel", "0"], "--model.mixer.conv-kernel must be at least 1, got 0"),
        (["nanogpt", "--model.mixer.heads", "5"], "--model.mixer.heads 5 must divide the width 288"),
        (["mhc_ssm", "--model.vocab-size", str(2**31)], "--model.vocab-size must be below 2**31, got 2147483648"),
        (["quickstart", "--model.vocab-size", str(2**31 - 1)], "choose a smaller --model.vocab-size"),
        (["quickstart", "--model.layers", "1000000000"], "choose a smaller --model.layers"),
        (["quickstart", "--data.seq-len", "1000000000"], "choose a smaller --model.max-len or --data.seq-len"),
        (["quickstart", "--model.residual.streams", "1000000"], "choose a smaller --model.residual.streams"),
        (["quickstart@dynamic_mhc", "--model.residual.streams", "3000"], "smaller --model.residual.streams"),
        (["quickstart", "--model.width", "100000000"], "choose a smaller --model.width"),
        (["mhc_ssm", "--model.max-len", "8"], "--model.max-len 8 is shorter than --data.seq-len 256"),
        (["mhc_ssm", "--model.vocab-size", "0"], "--model.vocab-size must be at least 1, got 0; None follows"),
        (["mhc_ssm", "--model.vocab-size", "99"], "--model.vocab-size 99 is smaller than the 50257 tokens of"),
        (["mhc_ssm", "--mesh.tensor", "64"], "does not use exactly the"),
        (["mhc_ssm", "--data.source", "/no/such/file.txt"], "--data.source /no/such/file.txt: no such file"),
        (["mhc_ssm", "--train.steps", "ten"], "--train.steps must be a whole number, got 'ten'\n"),
        (["mhc_ssm", "--data.batch_size=1.5"], "--data.batch-size must be a whole number, got '1.5'\n"),
        (["mhc_ssm", "--optim.lr", "fast"], "--optim.lr must be a number, got 'fast'\n"),
        (["mhc_ssm", "--data.windows", "all"], "--data.windows must be one of packed, random, got 'all'\n"),
        (["mhc_ssm", "--train.steps"], "--train.steps needs a value\n"),
        (["mhc_ssm", "--train.steps", "--optim.lr", "1"], "--train.steps needs a value\n"),
        (["mhc_ssm", "--distributed.num-processes", "two"], "--distributed.num-processes must be a whole number, got"),
        (["--config"], "--config needs a value\n"),
        (
            ["mhc_ssm", "--train.resume", "maybe"],
            "--train.resume is a switch, which is given alone, or as --train.no-resume; got 'maybe'\n",
        ),
        (["mhc_ssm", "--train.no-resume=maybe"], "no flag takes maybe; see --help\n"),
        (["mhc_ssm", "another"], "no flag takes another; see --help\n"),
        (["mhc_ssm", "--model.mlp", "gelu"], "--model.mlp: unknown channel 'gelu'; did you mean 'gelu_mlp'?"),
        (["mhc_ssm", "--model.norm", "None"], "--model.norm: unknown norm 'None'"),
        (["mhc_ssm", "--model.mixer", "mine"], "if it is defined elsewhere, add --import MODULE"),
        (["--import", "json", "csv", "quickstart"], "not csv, quickstart; --import takes one module, repeat it"),
        (["nanogpt", "--model.mixer.qk-norm"], "--model.mixer.qk-norm needs a kind: ln, rms, None"),
        (["nanogpt", "--model.mixer.qk-norm-eps", "0.1"], "give --model.mixer.qk-norm rms"),
        (["nanogpt", "--model.norm-bias", "True"], "unknown flag --model.norm-bias: use --model.norm.bias"),
        (["mhc_ssm", "--model.norm-eps", "0.1"], "unknown flag --model.norm-eps: use --model.norm.eps"),
        (["mhc_ssm", "--model.norm", "ln", "--model.norm.eps", "-1"], "--model.norm.eps must not be negative"),
        (["mhc_ssm", "--model.residual", "plain"], "use ends 'identity'"),
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
    assert result.stderr == "error: unknown flag --optim.lrr; did you mean --optim.lr?\n"


HELP = """
import contextlib, importlib, io, sys
HEAVY = {"matplotlib", "orbax", "grain", "tokenizers", "tensorstore", "datasets", "pyarrow", "transformers", "torch"}
for words in sys.argv[1:]:
    module, *flags = words.split()
    sys.argv = [module, *flags]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module(module).main(flags)
    if loaded := HEAVY & {*sys.modules}:
        sys.exit(f"{words} loads {sorted(loaded)}")
"""
HELPED = (
    "train.__main__",
    "train.__main__ quickstart --help",
    "train.__main__ quickstart --help-all",
    *(
        f"train.{name} --help"
        for name in ("evaluate", "sample", "export", "compare", "study.__main__", "prepare_fineweb", "rlm_demo")
    ),
    "train.evaluate --tasks --help",
    "train.inspect --help",
    "train.inspect quickstart --help",
    "train.benchmark.__main__ --help",
    "parity_tests.__main__ --help",
)


@pytest.mark.slow
def test_help_loads_nothing_that_only_work_needs():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", HELP, *HELPED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_name_the_configurations_are_listed(monkeypatch, capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert call(monkeypatch, *argv) == 0
        out = capsys.readouterr().out
        assert all(re.search(rf"^  {name}\s", out, re.MULTILINE) for name in configs.names())


@pytest.mark.parametrize("argv", [[], ["quickstart", "--help"]])
def test_lists_fit_the_terminal(argv, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, *argv) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_finished_run_names_the_next_commands(monkeypatch, tiny, capsys):
    monkeypatch.setattr(loop, "run", lambda config, resume_command: None)
    monkeypatch.setattr(sys, "orig_argv", ["venv/bin/python", "-m", "train", "tiny_for_test"])
    assert call(monkeypatch, "tiny_for_test") == 0
    title, *commands = capsys.readouterr().out.splitlines()
    assert title == "next:"
    assert [command.split()[:3] for command in commands] == [
        ["venv/bin/python", "-m", module] for module in ("train.sample", "train.evaluate", "train.inspect", "train")
    ]
    assert commands[-1].endswith(f"-m train --resume {tiny.run_dir} --train.steps {tiny.train.steps * 3 // 2}")


def test_what_sees_the_future_is_not_sampled_next(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loop, "run", lambda config, resume_command: None)
    assert call(monkeypatch, "shc_500m_original", "--run-dir", str(tmp_path / "run")) == 0
    assert re.findall(r"train\.\w+", capsys.readouterr().out)[:2] == ["train.evaluate", "train.inspect"]


@pytest.mark.parametrize("name", configs.names())
def test_help_all_shows_every_flag_with_its_type(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help-all") == 0
    out = capsys.readouterr().out
    for flag in (
        "--model.reader.width INT" if "transformer_scan" in name else "--model.width INT",
        "--optim.lr FLOAT",
        "--train.resume, --train.no-resume",
        "--optim.decay {matrices,kernels,all}",
    ):
        assert flag in out
    assert ("--model.adapters.rank INT" in out) == ("adapters" in name)
    assert "--import" in out
    assert "--distributed.coordinator STR" in out


def test_flags_change_the_configuration_they_name(monkeypatch, tiny):
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, resume_command: seen.append((config, resume_command)))
    flags = ["--optim.lr", "0.5", "--model.mixer.conv-kernel", "5", "--train.resume", "False"]
    assert call(monkeypatch, "tiny_for_test", *flags) == 0
    (config, resume_command), expected = (
        seen[0],
        tiny.replace(
            optim=tiny.optim.replace(lr=0.5), model=tiny.model.replace(mixer=tiny.model.mixer.replace(conv_kernel=5))
        ),
    )
    assert config == expected
    assert resume_command == f"python -m train --resume {tiny.run_dir}"


def test_a_plain_name_is_what_the_list_is_about(monkeypatch, capsys):
    assert call(monkeypatch, "quickstart", "--help") == 0
    out = capsys.readouterr().out
    known = dict(flags_of(configs.load("quickstart")))
    assert set(command.COMMON) <= set(known)
    assert all(f"  {flag} " in out for flag in command.COMMON)
    assert "peak learning rate (0.004)" in out
    assert "--help-all" in out
    assert "--model.norm, --model.residual, --model.residual.projection" in " ".join(out.split())
    assert len(out.splitlines()) < 28


@pytest.fixture
def started(monkeypatch):
    """Configurations and resume commands of the runs that the command would start."""
    seen = []
    monkeypatch.setattr(loop, "run", lambda config, resume_command: seen.append((config, resume_command)))
    return seen


def test_switches_have_two_flags_and_older_spellings(monkeypatch, tiny, started):
    for argv in (["--train.resume"], ["--train.resume", "True"], ["--train.resume=True"]):
        assert call(monkeypatch, "tiny_for_test", *argv) == 0
    for argv in (["--log.no-progress"], ["--log.progress", "False"], ["--log.progress=False", "--optim.lr", "0.5"]):
        assert call(monkeypatch, "tiny_for_test", "--log.progress", *argv) == 0
    assert [config.train.resume for config, _ in started] == [True] * 3 + [False] * 3
    assert [config.log.progress for config, _ in started[3:]] == [False] * 3


def test_a_file_gives_the_configuration_and_flags_change_it(monkeypatch, tmp_path, tiny, started):
    written = tiny.replace(optim=tiny.optim.replace(lr=0.25), train=tiny.train.replace(resume=True))
    (tmp_path / "config.json").write_text(written.to_json(), encoding="utf-8")
    # What the file leaves out is that of the configuration it names; a part of another kind replaces the whole part.
    (tmp_path / "mine.toml").write_text(
        'name = "tiny_for_test"\n[optim]\nlr = 1\n[model.mixer]\nkind = "attention"\nheads = 2\n', encoding="utf-8"
    )
    assert call(monkeypatch, "--config", str(tmp_path / "config.json"), "--optim.clip", "2") == 0
    assert call(monkeypatch, "--config", str(tmp_path / "mine.toml")) == 0
    assert started[0][0] == tiny.replace(optim=tiny.optim.replace(lr=0.25, clip=2.0))
    expected = tiny.replace(
        name="tiny_for_test",
        optim=tiny.optim.replace(lr=1.0),
        model=tiny.model.replace(mixer=AttentionConfig(heads=2)),
    )
    assert started[1][0] == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "[optim]\nlrr = 1", "a.toml: optim: unknown field 'lrr'; did you mean 'lr'?"),
        ("a.toml", "learning_rate = 1", "a.toml: unknown field learning_rate: use optim.lr"),
        ("a.toml", "[train]\nseq_len = 1", "a.toml: unknown field train.seq_len; did you mean data.seq_len?"),
        ("a.toml", "[zzzz]\nqqqq = 1", "a.toml: unknown field zzzz\n"),
        ("a.toml", "[optim]\nlr = 'x'", "a.toml: optim: lr must be a number, got 'x'"),
        ("a.toml", "optim = 3", "a.toml: optim: expected a JSON object, got 3"),
        ("a.toml", "[optim", "a.toml: not valid TOML"),
        (
            "a.toml",
            "[model.mixer]\nkind = 'atention'",
            "model.mixer: unknown mixer 'atention'; did you mean 'attention'",
        ),
        ("a.json", "[1]", "a.json: expected fields with values"),
        ("a.json", "{", "a.json: not valid JSON"),
        ("a.json", '{"model": {"widht": 3}}', "a.json: model: unknown field 'widht'; did you mean 'width'?"),
    ],
)
def test_faults_of_a_file_are_named(name, text, says, monkeypatch, tmp_path, started, capsys):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert call(monkeypatch, "--config", str(tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert started == []


def test_a_run_is_resumed_by_its_folder_alone(monkeypatch, tmp_path, tiny, started):
    folder = tmp_path / "moved here"
    folder.mkdir()
    (folder / "config.json").write_text(tiny.to_json(), encoding="utf-8")
    flags = ["--distributed.coordinator", "auto", "--import", "json"]
    monkeypatch.setattr("train.__main__.join", lambda config: None)
    assert call(monkeypatch, "--resume", str(folder), "--train.steps", "7", *flags) == 0
    config, resume_command = started[0]
    assert config == tiny.replace(run_dir=str(folder), train=tiny.train.replace(resume=True, steps=7))
    assert resume_command == f"python -m train --resume '{folder}' --import json --distributed.coordinator auto"


def test_what_is_no_run_is_not_resumed(monkeypatch, tmp_path, tiny, started, capsys):
    (tmp_path / "shallow").mkdir()
    (tmp_path / "shallow" / "config.json").write_text(tiny.to_json(), encoding="utf-8")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").write_text(tiny.model.to_json(), encoding="utf-8")
    (tmp_path / "exported" / "model.safetensors").touch()
    for argv, says in (
        ([str(tmp_path / "shalow")], "does not exist; did you mean 'shallow'?; runs beside it: shallow"),
        ([str(tmp_path / "exported")], "exported holds no run"),
        ([str(tmp_path / "shallow"), "--run-dir", "elsewhere"], "leave out the other flag"),
        ([str(tmp_path / "shallow"), "--train.no-resume"], "leave out the other flag"),
        ([str(tmp_path / "shallow"), "--config", "x"], "give one of --config FILE and --resume RUN, not both"),
    ):
        assert call(monkeypatch, "--resume", *argv) == 2
        assert says in capsys.readouterr().err
    assert call(monkeypatch, "tiny_for_test", "--resume", str(tmp_path / "shallow")) == 2
    assert started == []


def test_a_plugin_that_raises_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "broken_lab.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert call(monkeypatch, "--import", "broken_lab", "quickstart") == 2
    assert capsys.readouterr().err == "error: --import broken_lab: ZeroDivisionError: division by zero\n"


def test_names_of_other_projects_lead_to_flags_that_exist():
    known = {*dict(flags_of(configs.load("gpt2_mhc"))), "--resume", "--tokens", "--run", "--count"}
    ours = [answer.split()[0] for answer in FOREIGN.values() if answer.startswith("--")]
    assert set(ours) <= known
    tails = {flag.removeprefix("--").rpartition(".")[2] for flag in known}
    assert not tails & set(FOREIGN)  # these are found without the table


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
    monkeypatch.setattr(loop, "run", lambda config, resume_command: seen.append(config.name))
    try:
        assert call(monkeypatch, "--import", "my_lab", "my_lab_run", "--optim.lr", "1") == 0
        assert seen == ["my_lab_run"]
    finally:
        registry._REGISTRY["config"].pop("my_lab_run", None)


def test_a_run_that_is_no_longer_finite_exits_with_status_3(monkeypatch, tiny, capsys):
    def diverge(config, resume_command):
        raise loop.NonFiniteError("4 steps in a row")

    monkeypatch.setattr(loop, "run", diverge)
    assert call(monkeypatch, "tiny_for_test") == 3
    assert capsys.readouterr().err == "error: 4 steps in a row\n"


def test_place_among_processes_comes_from_flags_before_the_environment(monkeypatch):
    calls = []
    monkeypatch.setattr("train.devices.launch._connect", lambda *args: calls.append(args))
    cluster = "train.devices.launch.ClusterEnv.auto_detect_unset_distributed_params"
    monkeypatch.setattr(cluster, lambda *args: ("cluster:3", 2, 1, [0]))
    for name, value in (("COORDINATOR", "env:1"), ("NUM_PROCESSES", "4"), ("PROCESS_ID", "3")):
        monkeypatch.setenv(f"MHC_JAX_{name}", value)
    join(DistributedConfig())
    join(DistributedConfig(coordinator="flag:2", process_id=0))
    join(DistributedConfig(coordinator="auto"))
    assert calls == [("env:1", 4, 3, None), ("flag:2", 4, 0, None), ("cluster:3", 2, 1, [0])]
    monkeypatch.setenv("MHC_JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match="MHC_JAX_PROCESS_ID must be a number, got 'first'"):
        join(DistributedConfig())


def test_a_file_says_what_it_starts_from(monkeypatch, tmp_path, capsys):
    (tmp_path / "a.toml").write_text("[optim]\nlr = 3e-3\n")
    assert call(monkeypatch, "--config", str(tmp_path / "a.toml")) == 2
    assert "a.toml has no name, and so nothing says what it leaves out; known: " in capsys.readouterr().err
