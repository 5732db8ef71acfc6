"""The command line where the locale knows ASCII alone, as in many containers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# One process for all of them, which saves most of the time; what is not ASCII comes as arguments do.
PROGRAM = """
import runpy, sys, warnings
warnings.simplefilter("ignore", RuntimeWarning)  # that a module is imported before it is run
corpus, run, prompt = sys.argv[1:]
sizes = "--model.width 8 --model.layers 1 --data.tokenizer chars --data.seq-len 8 --data.batch-size 2".split()
commands = [
    ["train"],
    ["train", "quickstart", "--help"],
    ["train", "quickstart", *sizes, "--data.source", corpus, "--data.cache-dir", run + "/../cache", "--run-dir", run,
     "--train.steps", "2", "--data.sample-tokens", "9"],
    ["train.sample", run, "--prompt", prompt, "--tokens", "9"],
    ["train.evaluate", run],
    ["train", "quickstart", "--data.source", corpus + "x", "--run-dir", run + "x"],
    ["train", "quickstart", "--data.source", corpus, "--run-dir", corpus + "x"],
]
for module, *argv in commands:
    sys.argv = [module, *argv]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as exit:
        status = exit.code
    print("status", status, flush=True)
"""


@pytest.mark.slow
def test_commands_in_an_ascii_locale(tmp_path):
    corpus, run = tmp_path / "Prüfung.txt", tmp_path / "run"
    corpus.write_text("naïve café 日本語\n" * 200, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, corpus, run, "日本"],
        capture_output=True,
        env={name: value for name, value in os.environ.items() if name not in ("LANG", "PYTHONIOENCODING")} | locale,
        timeout=300,
        check=False,
    )
    out, err = found.stdout.decode(), found.stderr.decode()
    said = [line for line in out.splitlines() if line.startswith("status")]
    assert said == [*["status 0"] * 5, *["status 2"] * 2], out + err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-2:]
    assert "set PYTHONUTF8=1" in err.splitlines()[-1]
    assert "日本" in out
    assert (run / "summary.json").is_file()
    # Characters are tokens: as many as were asked for, though the model is for eight, and a line end.
    assert len((run / "sample.txt").read_text(encoding="utf-8")) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Prüfung.txt", "cache", "run"]
