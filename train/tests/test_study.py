"""The controlled comparison: which runs it starts, what it chooses and what it reports."""

import json
import math
import os
import subprocess

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from mhc_jax.models import with_topology
from train.storage.folder import DIVERGED_FILE
from train.study import __main__ as study
from train.study import local, report, slurm
from train.study.plan import MATCHED, Job, Plan, rows_of
from train.tests.runs import WORDS

FLAGS = "--data.tokenizer bytes --data.seq-len 8 --data.batch-size 2 --model.width 12 --model.layers 1"
FLAGS += " --model.mixer.heads 2"
FLAGS += " --model.vocab-size None --model.max-len None --train.steps 3 --train.accumulate 1 --train.eval-every 1"
FLAGS += " --train.eval-batches 1 --data.max-eval-tokens 40 --data.sample-tokens 0 --model.execution.policy float32"


def finish(job, out, loss, **more):
    """Leaves what a run leaves that has trained four steps."""
    folder = job.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    if loss == math.inf:
        (folder / DIVERGED_FILE).touch()
        return
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": loss, "tokens": 5}) + "\n")
    summary = {"val_loss": loss, "params": 10, "tokens": 24, "tokens_per_second": 7.0, "seconds": 1.0, "steps": 4}
    (folder / "summary.json").write_text(json.dumps({**summary, **more}))


def plan_of(tmp_path, names=("nanogpt",), topologies=(), rates=(), seeds=(0,), flags=FLAGS):
    return Plan(tmp_path, rows_of(names, topologies), rates, seeds, tuple(flags.split()))


def test_rows_are_names_or_each_name_over_each_topology():
    assert [row.label for row in rows_of(["nanogpt"], ["plain", "mhc"])] == ["plain", "mhc"]
    two = rows_of(["a=nanogpt --model.width 3", "mhc_ssm"], ["plain", "mhc"])
    assert [(row.label, row.name, row.flags) for row in two[1:3]] == [
        ("a@mhc", "nanogpt@mhc", ("--model.width", "3")),
        ("mhc_ssm@plain", "mhc_ssm@plain", ()),
    ]
    (single,) = rows_of(["gla_170m@mhc"], [])
    assert (single.label, single.name) == ("gla_170m@mhc", "gla_170m@mhc")


@pytest.mark.slow
def test_matched_control_has_the_parameters_of_the_largest_row_of_its_name(tmp_path):
    plan = plan_of(tmp_path, ["nanogpt"], ["plain", "mhc", "dynamic_mhc", MATCHED])
    widened, plain = (plan.config(label).sized(1).model for label in (MATCHED, "plain"))
    assert widened.residual == plain.residual
    target = parameter_count(with_topology(plain, "dynamic_mhc"))
    assert abs(parameter_count(widened) - target) <= 12 + 1
    both = plan_of(tmp_path, [f"nanogpt@{MATCHED}", "nanogpt@mhc", "nanogpt@dynamic_mhc"])
    assert both.config(f"nanogpt@{MATCHED}").model.mlp == plan.config(MATCHED).model.mlp


def test_bad_rows_and_rates_are_refused_before_any_run(tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="did you mean 'mhc'"):
        study.main(["nanogpt", *out, "--topologies", "plain", "mhcc"])
    with pytest.raises(ConfigError, match="widens the MLP"):
        study.main(["mhc_ssm", *out, "--topologies", "plain", MATCHED])
    with pytest.raises(ConfigError, match="largest other row of nanogpt, and there is none"):
        study.main([f"nanogpt@{MATCHED}", "mhc_ssm", *out])
    with pytest.raises(ConfigError, match="at least one value"):
        study.main(["nanogpt", *out, "--seeds"])
    with pytest.raises(ConfigError, match="--train-flags|unrecognized|lrr"):
        study.main(["nanogpt", *out, "--train-flags=--optim.lrr 1"])
    with pytest.raises(ConfigError, match="call one of them 'LABEL=nanogpt'"):
        study.main(["nanogpt", "nanogpt --model.width 12", *out])
    for label in ("a/b", ".a", "slurm", "study.json"):
        with pytest.raises(ConfigError, match=f"'{label}' cannot be the name of a folder"):
            study.main([f"{label}=nanogpt", *out])
    with pytest.raises(ConfigError, match="a topology of its own"):
        study.main(["nanogpt@mhc", *out, "--topologies", "plain"])
    with pytest.raises(ConfigError, match="--train-flags cannot be split into words"):
        study.main(["nanogpt", *out, "--train-flags=--run-dir 'a"])
    with pytest.raises(ConfigError, match="lr must be positive"):
        study.main(["nanogpt", *out, "--rates", "1e-3", "0"])
    with pytest.raises(ConfigError, match="seed must not be negative"):
        study.main(["nanogpt", *out, "--seeds", "0", "-1"])
    for words in (["nanogpt --run-dir runs/mine"], ["nanogpt", "--train-flags=--train.seed=3"]):
        with pytest.raises(ConfigError, match="differs from run to run, and the study gives it; leave it out"):
            study.main([*words, *out])
    with pytest.raises(ConfigError, match="--rates has 0.001 twice"):
        study.main(["nanogpt", *out, "--rates", "1e-3", "0.001"])
    with pytest.raises(ConfigError, match="--out is missing"):
        study.main(["nanogpt"])
    with pytest.raises(ConfigError, match="name what to compare"):
        study.main(out)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_best_rate_is_trained_with_every_seed_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    started = []

    def train(job, plan, children):
        started.append(job)
        finish(job, plan.out, {1e-3: 3.0, 1e-2: 2.0, 1e-1: math.inf}[job.rate] + 0.1 * job.seed + (job.row == "mhc"))

    monkeypatch.setattr(local, "train", train)
    rows = ["--topologies", "plain", "mhc", "--rates", "1e-3", "1e-2", "1e-1", "--seeds", "0", "1"]
    argv = ["nanogpt", "--out", str(tmp_path), *rows]
    study.main(argv)
    assert len(started) == 2 * 3 + 2
    study.main(argv)
    assert len(started) == 2 * 3 + 2
    found = json.loads((tmp_path / "study.json").read_text())
    assert [row["rate"] for row in found["rows"]] == [1e-2, 1e-2]
    assert found["rows"][0]["seeds"]["1"]["val_loss"] == pytest.approx(2.1)
    assert found["rows"][0]["seeds"]["1"]["scored_tokens"] == 20
    assert found["rows"][0]["tried"] == {"0.001": 3.0, "0.01": 2.0, "0.1": None}
    assert found["rows"][1]["tried"] == {"0.001": 4.0, "0.01": 3.0, "0.1": None}
    assert "+1.0000" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").stat().st_size > 10_000
    page = (tmp_path / "study.html").read_text()
    assert page.count("<picture>") == 1
    assert f"--run-dir {Job('mhc', 0.01, 1).folder(tmp_path)} --optim.lr 0.01" in page
    plan = study.plan_of(study.parse(argv))
    figure = report.draw(plan, found["rows"] and plan.records(), "tiny on text")
    assert figure.get_size_inches().tolist() == pytest.approx([3.2 + 0.6, 2.5 + 0.8])
    (only,) = figure.axes  # the first row is what the others are compared with
    assert only.get_title(loc="left") == "mhc, lr 0.01: +1.000"
    assert only.lines[-1].get_ydata().tolist() == pytest.approx([1.0])


def test_different_models_keep_their_own_rates_and_what_does_not_compare_is_said(tmp_path):
    names = ["nanogpt", "ssm=mhc_ssm --model.width 24 --data.batch-size 4 --optim.beta2 0.9"]
    flags = FLAGS.replace("--model.mixer.heads 2", "").replace("--model.width 12", "")
    plan = plan_of(tmp_path, names, flags=flags)
    jobs = plan.due()
    assert [(job.row, job.rate) for job in jobs] == [("nanogpt", 6e-4), ("ssm", plan.config("ssm").optim.lr)]
    finish(jobs[0], tmp_path, 2.0)
    finish(jobs[1], tmp_path, 3.0, params=20, peak_bytes=2**21)
    assert plan.due() == []
    rows = report.table(plan, plan.records())
    assert [row["parameters"] for row in rows] == [10, 20]
    assert [row.get("peak MiB") for row in rows] == [None, 2.0]
    assert rows[1]["without embeddings"] < parameter_count(plan.config("ssm").sized(1).model)
    parameters, _, tokens, settings = report.remarks(plan, rows)
    assert parameters == "Parameters: NOT equal, 10 to 20."
    assert tokens == "Scored tokens: equal within 0.00%."
    assert {"data.batch_size", "optim.lr", "optim.beta2"} <= {
        *settings.removesuffix(".").partition(": ")[2].split(", ")
    }
    (axes,) = report.draw_curves(plan, plan.records(), "").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[16, 2.0]], [[32, 3.0]]]


def test_rows_that_diverged_are_called_so(tmp_path, recwarn):
    plan = plan_of(tmp_path, ["nanogpt", "b=nanogpt --optim.lr 1"], seeds=(0, 1))
    for job in plan.due():
        finish(job, tmp_path, math.inf if job.row == "b" and job.seed else 2.0)
    records = plan.records()
    rows = [(row["validation loss"], row["minus the first row"]) for row in report.table(plan, records)]
    assert rows == [("2.0000 ± 0.0000", "+0.0000"), ("diverged with 1 of 2 seeds", None)]
    report.draw_curves(plan, records[1:], "")
    assert not recwarn.list


def test_dry_run_says_what_each_run_is_and_starts_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "train", None)
    argv = ["nanogpt", "--topologies", "plain", "mhc", "--rates", "1e-3", "1e-2", "--out", str(tmp_path / "out")]
    study.main([*argv, f"--train-flags={FLAGS}", "--dry-run"])
    said = capsys.readouterr().out
    job = Job("mhc", 1e-2, 0)
    command = f"nanogpt@mhc {FLAGS} --run-dir {job.folder(tmp_path / 'out')} --optim.lr 0.01 --train.seed 0"
    assert f"python -m train {command} --data.seed 0 --train.resume\n" in said
    assert "| mhc/lr0.01-seed0 " in said
    assert "4 runs, 192 tokens; 4 to do; then 2 more seeds for the best rate of 2 rows" in said
    assert not (tmp_path / "out").exists()
    study.main([*argv, f"--train-flags={FLAGS}", "--dry-run", "--launch", "slurm", "--slurm.mem", "8G"])
    assert capsys.readouterr().out.endswith(f"Written to {tmp_path / 'out' / slurm.SCRIPT_FILE}, not submitted\n")
    assert "#SBATCH --mem=8G" in (tmp_path / "out" / slurm.SCRIPT_FILE).read_text().splitlines()
    study.main(["--list"])
    assert {"nanogpt", "gla_170m", "NAME@TOPOLOGY"} <= {*capsys.readouterr().out.split()}


SBATCH = """#!/bin/bash
export SLURM_ARRAY_TASK_ID=1
bash "$1" > /dev/null
echo "Submitted batch job 7, status $?"
"""


def test_an_array_job_runs_what_is_left(tmp_path, capsys, monkeypatch):
    tools, out = tmp_path / "tools", tmp_path / "the study"
    tools.mkdir()
    argv = ["nanogpt", "--topologies", "plain", "mhc", "--rates", "1e-3", "--seeds", "0", "1", "--out", str(out)]
    argv += ["--launch", "slurm", "--slurm.profile", str(tmp_path / "profile.toml"), "--slurm.time", "9:00"]
    (tmp_path / "profile.toml").write_text('account = "lab"\ntime = "1:00"\ngpus = 1\nenv = "set -u"\n')
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="sbatch is not on this machine"):
        study.main(argv)
    (tools / "sbatch").write_text(SBATCH)
    (tools / "python").write_text('#!/bin/bash\nmkdir -p "$LEFT"; echo "$@" > "$LEFT/argv"; exit 3\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    plan = study.plan_of(study.parse(argv))
    first, *others = plan.due()
    assert len(others) == 3
    finish(first, out, 2.0)
    job = plan.due()[1]
    monkeypatch.setenv("LEFT", str(job.folder(out)))
    study.main(argv)
    assert "Submitted batch job 7, status 3: 3 runs" in capsys.readouterr().out
    text = (out / slurm.SCRIPT_FILE).read_text()
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name='study-the study'\n#SBATCH --array=0-2\n")
    assert {"#SBATCH --account=lab", "#SBATCH --time=9:00", "#SBATCH --gres=gpu:1"} <= {*text.splitlines()}
    assert f"#SBATCH --output='{out}/slurm/%A-%a.log'" in text
    assert "--partition" not in text
    assert (job.folder(out) / "argv").read_text().strip() == " ".join(plan.command(job))
    assert job not in plan.due(), "a run that diverged is not tried again"
    subprocess.run(["bash", "-n", str(out / slurm.SCRIPT_FILE)], check=True)


def test_a_bad_profile_is_refused(tmp_path):
    file = tmp_path / "profile.toml"
    file.write_text('acount = "lab"\n')
    argv = ["nanogpt", "--out", str(tmp_path / "out"), "--slurm.profile"]
    with pytest.raises(ConfigError, match="did you mean 'account'"):
        study.main([*argv, str(file)])
    with pytest.raises(ConfigError, match=r"--slurm.profile .*nowhere"):
        study.main([*argv, str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_a_real_run_is_trained_once(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{word} {word}s.\n" for word in WORDS * 40))
    flags = f"{FLAGS} --data.source {corpus} --data.cache-dir {tmp_path / 'cache'}"
    plan = plan_of(tmp_path / "out", topologies=("plain",), rates=(1e-3,), flags=flags)
    local.train_all(plan, 1)
    (job,) = plan.tried("plain")
    file = job.folder(plan.out) / "summary.json"
    stamp = file.stat().st_mtime_ns
    local.train_all(plan, 1)
    assert file.stat().st_mtime_ns == stamp
    plan.check_begun()
    for changes, fault in (
        ("--train.steps 4", "train.steps was 3 and is now 4"),
        ("--model.width 16", "model.width was 12"),
    ):
        other = plan_of(tmp_path / "out", topologies=("plain",), rates=(1e-3,), flags=f"{flags} {changes}")
        with pytest.raises(ConfigError, match=f"of another study: --{fault}.*another --out"):
            other.check_begun()
    (record,) = plan.records()
    assert record["seeds"][0]["scored_tokens"] == record["seeds"][0]["tokens"] == 3 * 2 * 8
