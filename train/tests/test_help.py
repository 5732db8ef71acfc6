"""Arguments that are missing have names, and help fits the terminal."""

import pytest

from mhc_jax.config import ConfigError
from train import compare, evaluate, export, prepare_rlm, rlm_bench, sample
from train.terminal import cli


@pytest.mark.parametrize(
    ("record", "argv", "says"),
    [
        (sample.Flags, [], "RUN is missing: run directory, or exported folder; see --help"),
        (export.Flags, ["run"], "FOLDER is missing: folder to create; see --help"),
        (prepare_rlm.Flags, [], "--out is missing: folder of both files; see --help"),
        (prepare_rlm.Flags, ["--records", "9"], "unknown flag --records: use --count"),
    ],
)
def test_what_is_missing_has_a_name(record, argv, says):
    with pytest.raises(ConfigError) as caught:
        cli.parse(record, argv, prog="command")
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "record", [compare.Flags, evaluate.TaskFlags, export.Flags, prepare_rlm.Flags, rlm_bench.Flags]
)
def test_help_is_no_wider_than_the_terminal(record, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit, match="^0$"):
        cli.parse(record, ["--help"], prog="python -m train.command")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    assert any("--import MODULE" in line for line in lines[1:])
    assert lines[0].startswith("usage: python -m train.command")


def test_a_second_module_after_import_is_told_to_repeat_it():
    with pytest.raises(ConfigError, match="^no flag takes csv; see --help; --import takes one module, repeat it$"):
        cli.parse(sample.Flags, ["run", "--import", "json", "csv"], prog="command")


def test_modules_are_imported_one_by_one_or_as_a_list():
    apart = ["--import", "a", "--import", "b", "--matrix", "--only", "c", "d", "--import=e", "--import", "f"]
    assert cli.plugins_apart(["--import", "a", "b", "--matrix", "--only", "c", "d", "--import=e", "f"]) == apart
    assert cli.plugins_apart(apart) == apart
    assert cli.plugins_apart(["--import", "--golden"]) == ["--import", "--golden"]
