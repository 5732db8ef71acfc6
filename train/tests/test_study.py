"""The controlled comparison: which runs it starts, what it chooses and what it reports."""

import json
import math

import pytest

import configs
from mhc_jax.config import ConfigError
from mhc_jax.functional import parameter_count
from mhc_jax.models import with_topology
from train import study
from train.tests.runs import WORDS

FLAGS = "--data.tokenizer bytes --data.seq-len 8 --data.batch-size 2 --model.width 12 --model.layers 1"
FLAGS += " --model.mixer.heads 2"
FLAGS += " --model.vocab-size None --model.max-len None --train.steps 3 --train.accumulate 1 --train.eval-every 1"
FLAGS += " --train.eval-batches 1 --data.max-eval-tokens 40 --data.sample-tokens 0 --model.execution.policy float32"


def test_matched_control_has_the_parameters_of_the_largest_row():
    flags = FLAGS.split()
    name, own = study.row_flags("nanogpt", study.MATCHED, ["plain", "mhc", "dynamic_mhc", study.MATCHED], flags)
    assert name == "nanogpt@plain"
    config = study._resolved("nanogpt@plain", flags)
    widened = config.model.replace(mlp=config.model.mlp.replace(hidden=int(own[1])))
    target = parameter_count(with_topology(config.model, "dynamic_mhc"))
    assert abs(parameter_count(widened) - target) <= 12 + 1


def test_bad_rows_and_rates_are_refused_before_any_run(tmp_path):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match="did you mean 'mhc'"):
        study.main(["nanogpt", *out, "--topologies", "plain", "mhcc"])
    with pytest.raises(ConfigError, match="widens the MLP"):
        study.main(["mhc_ssm", *out, "--topologies", "plain", study.MATCHED])
    with pytest.raises(ConfigError, match="at least one value"):
        study.main(["nanogpt", *out, "--rates"])
    with pytest.raises(ConfigError, match="--train-flags|unrecognized|lrr"):
        study.main(["nanogpt", *out, "--train-flags=--optim.lrr 1"])
    assert not (tmp_path / "out").exists()


def test_the_best_rate_is_trained_with_every_seed_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    started = []

    def train(job, flags, out, children):
        started.append(job)
        folder = job.folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        loss = {1e-3: 3.0, 1e-2: 2.0, 1e-1: math.inf}[job.rate] + 0.1 * job.seed + (job.row == "mhc")
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": loss}) + "\n")
        return {"val_loss": loss, "params": 10, "tokens": 5, "tokens_per_second": 7.0, "seconds": 1.0}

    monkeypatch.setattr(study, "train", train)
    rows = ["--topologies", "plain", "mhc", "--rates", "1e-3", "1e-2", "1e-1", "--seeds", "0", "1"]
    study.main(["nanogpt", "--out", str(tmp_path), *rows])
    assert len(started) == 2 * 3 + 2
    report = json.loads((tmp_path / "study.json").read_text())
    assert [row["rate"] for row in report["rows"]] == [1e-2, 1e-2]
    assert report["rows"][0]["seeds"]["1"]["val_loss"] == pytest.approx(2.1)
    assert report["rows"][0]["tried"] == {"0.001": 3.0, "0.01": 2.0, "0.1": math.inf}
    assert report["rows"][1]["tried"] == {"0.001": 4.0, "0.01": 3.0, "0.1": math.inf}
    assert "+1.0000" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").stat().st_size > 10_000
    figure = study.draw(report["rows"], tmp_path, "tiny on text")
    assert figure.get_size_inches().tolist() == pytest.approx([3.2 + 0.6, 2.5 + 0.8])
    (only,) = figure.axes  # the first row is what the others are compared with
    assert only.get_title(loc="left") == "mhc, lr 0.01: +1.000"
    assert only.lines[-1].get_ydata().tolist() == pytest.approx([1.0])


def test_a_real_run_is_trained_once(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"{word} {word}s.\n" for word in WORDS * 40))
    flags = study.Flags(
        "nanogpt",
        str(tmp_path / "out"),
        topologies=("plain",),
        rates=(1e-3,),
        seeds=(0,),
        train_flags=f"{FLAGS} --data.source {corpus} --data.cache-dir {tmp_path / 'cache'}",
    )
    (first,) = study.study(flags)
    file = study.Job("plain", 1e-3, 0).folder(tmp_path / "out") / "summary.json"
    stamp = file.stat().st_mtime_ns
    (second,) = study.study(flags)
    assert first == second
    assert file.stat().st_mtime_ns == stamp
    assert configs.load("nanogpt@plain").name == "nanogpt@plain"
