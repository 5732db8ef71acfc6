"""Where commands write is looked at before their work: one line names the flag, and nothing is left."""

import json

import pytest

from mhc_jax.config import ConfigError
from train import compare, export, inspect
from train.storage.outputs import check_file, check_folder, json_text
from train.tests.tiny import tiny_export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("outputs"))[2]


def test_a_file_may_be_new_or_written_over_and_nothing_is_left(tmp_path):
    old = tmp_path / "old.png"
    old.write_text("old")
    assert check_file("--picture", old) == old
    assert check_file("--picture", tmp_path / "a" / "b" / "new.png") == tmp_path / "a" / "b" / "new.png"
    assert check_folder("--out", tmp_path / "c") == tmp_path / "c"
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("path", ["file/inside", "file/deep/inside", "n" * 300])
def test_what_cannot_be_written_is_refused_by_its_flag(tmp_path, path):
    (tmp_path / "file").write_text("mine")
    for check, flag in ((check_file, "--html"), (check_folder, "--out")):
        with pytest.raises(ConfigError, match=rf"^{flag} .*; choose another {flag}$") as refused:
            check(flag, tmp_path / path)
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="--html .* is a folder; name a file in it"):
        check_file("--html", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_commands_refuse_before_they_work(tmp_path, exported, monkeypatch):
    def work(*args, **options):
        raise AssertionError("the work has begun")

    blocked = tmp_path / "file"
    blocked.write_text("mine")
    monkeypatch.setattr(inspect, "parameter_rows", work)
    monkeypatch.setattr(export, "load_run", work)
    monkeypatch.setattr(compare, "summary_row", work)
    for flag, main, argv in (
        ("--picture", inspect.main, [str(exported), "--picture", f"{blocked}/a.png"]),
        ("--html", inspect.main, [str(exported), "--picture", f"{tmp_path}/a.png", "--html", str(tmp_path)]),
        ("--picture", compare.main, [str(exported), "--picture", f"{blocked}/a.png"]),
        ("OUT", export.main, [str(exported), f"{blocked}/out"]),
    ):
        with pytest.raises(ConfigError, match=rf"^{flag} "):
            main(argv)


def test_reports_hold_no_numbers_that_json_lacks():
    report = {"losses": [1.5, float("inf")], "spread": float("nan"), "steps": 3, "sites": ("a", None)}
    text = json_text(report)
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text) == {"losses": [1.5, None], "spread": None, "steps": 3, "sites": ["a", None]}
