"""How faults and mistyped flags are named, and parts of other kinds chosen."""

import ast
from pathlib import Path

import pytest
import tyro

import configs
import train
from mhc_jax.nn.mixers import DiagonalSSMConfig
from mhc_jax.nn.norms import LayerNormConfig, RMSNormConfig
from mhc_jax.nn.rotary import YarnScalingConfig
from train import evaluate, inspect
from train.benchmark import __main__ as benchmark
from train.config import RunConfig
from train.terminal import cli
from train.terminal.flags import flags_of

FOLDER = Path(train.__file__).parent
FIELDS = {flag.removeprefix("--").replace("-", "_") for flag, _ in flags_of(RunConfig())}


def _raised(tree: ast.AST):
    """The texts of all errors that a module raises by hand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc:
            yield from (part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant))


def test_messages_name_flags_as_they_are_typed():
    files = [path for path in FOLDER.rglob("*.py") if "tests" not in path.parts]
    texts = [(path.name, text) for path in files for text in _raised(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(texts) > 100
    named = {
        (file, word)
        for file, text in texts
        if isinstance(text, str)
        for word in text.replace(";", " ").replace(",", " ").split()
        if (word in FIELDS and "." in word) or ("--" in word and "_" in word)
    }
    assert not named


def test_a_part_may_be_of_another_kind():
    base = configs.load("nanogpt")

    def parsed(*argv):
        markers = (tyro.conf.AvoidSubcommands,)
        return cli.parse(RunConfig, argv, prog="test", default=base, markers=markers).model

    model = base.model
    assert parsed("--model.norm", "ln") == model  # of its own kind: the fields stay
    assert parsed("--model.norm=rms", "--model.norm.eps", "0.5") == model.replace(norm=RMSNormConfig(eps=0.5))
    found = parsed("--model.mixer.qk-norm", "ln", "--model.mixer.qk-norm.no-bias").mixer
    assert found == model.mixer.replace(qk_norm=LayerNormConfig(bias=False))
    found = parsed("--model.mixer.rotary", "half", "--model.mixer.rotary-scaling", "yarn").mixer
    assert found == model.mixer.replace(rotary="half", rotary_scaling=YarnScalingConfig())
    assert parsed("--model.mlp", "None") == model.replace(mlp=None)
    assert parsed("--model.mixer", "diagonal_ssm", "--model.mixer.chunk", "3").mixer == DiagonalSSMConfig(chunk=3)


@pytest.mark.parametrize("main", [evaluate.main, inspect.main, benchmark.parse])
def test_help_without_a_run_shows_no_value_that_the_run_decides(main, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert not exit.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert "--data.*" in printed
    assert "start with the values of the run or configuration; see python -m train.inspect NAME --help" in printed
    assert "--data.seq-len" not in printed
    assert "(default: " in printed
