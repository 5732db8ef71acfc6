"""The demonstration answers rightly, within 80 columns, and goes on after Ctrl-C."""

import collections
import signal
import subprocess
import sys

import jax
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from mhc_jax.rlm import Trace, replay
from train import rlm_demo
from train.tests.runs import tiny_run

SMALL = ["--characters", "50000"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    rlm_demo.main([*SMALL, "--out", str(folder)])
    return folder


def test_the_answer_is_the_truth(tmp_path, capsys):
    rlm_demo.main([*SMALL, "--out", str(tmp_path / "new" / "folder")])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 or str(tmp_path) in line for line in shown.splitlines())
    answer, truth = (line.split(":", 1)[1].strip() for line in shown.splitlines() if line[:5] in ("answe", "truth"))
    assert answer == truth
    assert "site 00" in truth
    assert "used 30 calls" in shown
    assert "find a regular expression" in shown


def test_documents_are_generated_with_one_truth():
    text, truth = rlm_demo.document(30_000)
    assert (text, truth) == rlm_demo.document(30_000)
    assert len(text) >= 29_999
    left = collections.defaultdict(list)
    for line in text.text.splitlines():
        if any(words in line for words in rlm_demo.NOT_STOPPED):
            left[line.split(" | ")[1]].append(line)
    site = max(left, key=lambda name: len(left[name]))
    signed = left[site][-1].rsplit("signed ", 1)[1]
    assert truth == f"{site}: {len(left[site])} leaks, the last report signed by {signed}"


def test_a_finished_run_is_not_overwritten(whole):
    before = (whole / "trace.jsonl").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"--out .* already holds trace.jsonl and trace.html; choose another folder"):
        rlm_demo.main([*SMALL, "--out", str(whole)])
    assert (whole / "trace.jsonl").stat().st_mtime_ns == before


def test_what_it_writes(whole):
    assert sorted(path.name for path in whole.iterdir()) == ["trace.html", "trace.jsonl"]
    trace = Trace.load(whole / "trace.jsonl")
    document, _ = rlm_demo.document(50_000)
    assert replay(trace, document).trace == trace
    assert "Recursive call" in (whole / "trace.html").read_text(encoding="utf-8")


def test_an_interrupted_run_goes_on(whole, tmp_path, capsys):
    command = [sys.executable, "-m", "train.rlm_demo", *SMALL, "--out", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--delay", "0.3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        for line in run.stdout:
            if line.startswith("turn 2"):
                run.send_signal(signal.SIGINT)
                break
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.strip() == f"interrupted; the same command goes on from {tmp_path / 'state'}"
    rlm_demo.main([*SMALL, "--out", str(tmp_path)])
    said, _, turn = capsys.readouterr().out.partition("\n")[0].rpartition(" at turn ")
    assert said == f"resuming {tmp_path / 'state'}"
    assert turn in "23"  # the signal comes before the second turn is saved, or after it
    assert Trace.load(tmp_path / "trace.jsonl") == Trace.load(whole / "trace.jsonl")
    assert not (tmp_path / "state").exists()


def test_a_run_over_another_document_is_kept(tmp_path, monkeypatch):
    def interrupted(messages, delay):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rlm_demo, "script", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rlm_demo.main([*SMALL, "--out", str(tmp_path)])
    kept = (tmp_path / "state").read_bytes()
    with pytest.raises(ConfigError, match="over another document"):
        rlm_demo.main(["--characters", "60000", "--out", str(tmp_path)])
    assert (tmp_path / "state").read_bytes() == kept


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--characters", "10"], "characters must be at least 10000"),
        (["--delay", "-1"], "delay must not be negative"),
        (["--environment", "docker"], "environment must be one of monty"),
        (["--run", "nowhere"], "nowhere does not exist"),
    ],
)
def test_faults_of_flags_leave_nothing_behind(flags, fault, tmp_path):
    with pytest.raises(ConfigError, match=fault):
        rlm_demo.main([*SMALL, "--out", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A model that was never trained, as an exported folder."""

    def made(max_len):
        folder = tmp_path_factory.mktemp("export") / "folder"
        config = tiny_run(folder.parent)
        model = mhc_ssm(
            "baseline", vocab_size=config.data.tokenizer_of_text().vocab_size, max_len=max_len, width=8, layers=1
        )
        mhc_jax.save(folder, model, mhc_jax.init(model, jax.random.key(0)))
        (folder / "run.json").write_text(config.replace(model=model).to_json())
        return str(folder)

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("max_len", "ending"), [(1024, "3 turns in a row failed"), (256, "the prompt has")])
def test_a_model_of_this_project_says_what_it_says(max_len, ending, export, tmp_path, capsys):
    with pytest.raises(SystemExit, match="^1$"):
        rlm_demo.main([*SMALL, "--out", str(tmp_path), "--run", export(max_len)])
    shown = capsys.readouterr().out
    assert f"errors: {ending}" in shown
    assert all(len(line) <= 80 or str(tmp_path) in line for line in shown.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.html", "trace.jsonl"]


def test_a_model_without_room_for_the_question_is_named(export, tmp_path):
    folder = export(64)
    with pytest.raises(
        ConfigError, match=rf"--run {folder}: the prompt has \d+ tokens, and .* takes 56; train one with a larger"
    ):
        rlm_demo.main([*SMALL, "--out", str(tmp_path / "out"), "--run", folder])
    assert not (tmp_path / "out").exists()
