"""Students of a trained teacher: the command, what a run remembers of its teacher, and which teachers are refused."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import interop, registry
from mhc_jax.config import ConfigError
from mhc_jax.models import gpt2, mhc_ssm, with_topology
from mhc_jax.nn.mixers import AttentionConfig
from train import distill, inspect
from train.config import RunConfig
from train.loop import run as run_module
from train.loop.run import run
from train.objectives.distillation import PROJECTIONS, DistillationConfig
from train.objectives.kind import TeacherConfig
from train.storage.checkpoint import Checkpoints
from train.storage.folder import read_metrics, read_summary
from train.storage.restore import load_run
from train.terminal.interrupt import Interrupted
from train.tests.runs import tiny_run
from train.update.optimizer import make_optimizer
from train.update.state import trained_info
from train.update.step import init_state

ROOT = Path(__file__).parents[2]
GPT = gpt2(vocab_size=None, max_len=None, width=12, layers=2, mixer=AttentionConfig(heads=2))
STEPS = 6
TERMS = ("kl", "hidden", "cross_entropy")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained transformer as teacher, and the configuration of a student, ``tiny``."""
    folder = tmp_path_factory.mktemp("distill")
    config = tiny_run(folder)
    config = config.replace(
        train=config.train.replace(steps=STEPS, eval_every=0),
        checkpoint=config.checkpoint.replace(every=0),
        optim=config.optim.replace(decay_steps=STEPS),
    )
    run(config.replace(model=GPT, run_dir=str(folder / "teacher")))

    def tiny():
        return config

    registry.register("config", "tiny")(tiny)
    yield folder
    registry._REGISTRY["config"].pop("tiny")


def student(folder, name, teacher="teacher", **changes) -> RunConfig:
    config = tiny_run(folder)
    objective = DistillationConfig(chunk=8, teacher=TeacherConfig(str(folder / teacher)), **changes)
    return config.replace(
        run_dir=str(folder / name),
        objective=objective,
        train=config.train.replace(steps=STEPS, eval_every=0),
        checkpoint=config.checkpoint.replace(every=0),
        optim=config.optim.replace(decay_steps=STEPS),
    )


def last(folder: Path):
    config = RunConfig.from_json((folder / "config.json").read_text())
    optimizer = make_optimizer(config.optim, STEPS, trained_info(config))
    return Checkpoints(folder, 2).restore(jax.eval_shape(lambda: init_state(config, optimizer)))[0]


@pytest.fixture(scope="module")
def done(place):
    """The command at its end: folder of the run, and what it printed."""
    folder = place / "distilled"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(open(place / "out", "w")):
        patch.setenv("COLUMNS", "80")
        distill.main([str(place / "teacher"), "tiny", "--run-dir", str(folder), "--baseline"])
    return folder, (place / "out").read_text()


@pytest.mark.slow
def test_the_command_scores_teacher_student_and_the_student_alone(done, place):
    folder, out = done
    told = json.loads((folder / "distillation.json").read_text())
    assert told["models"].keys() == {"teacher", "distilled", "from scratch"}
    assert max(map(len, out.splitlines())) <= 80 or str(place) in max(out.splitlines(), key=len)
    table = out[out.index("| model") :]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["teacher", "distilled", "from scratch"]
    for name, run_dir in (("teacher", place / "teacher"), ("from scratch", folder / "baseline")):
        row = told["models"][name]
        assert row["loss"] == pytest.approx(read_summary(run_dir)["val_loss"], rel=1e-5)
        assert row["parameters"] == read_summary(run_dir)["params"]
        assert row["ppl"] == pytest.approx(math.exp(row["loss"]))
    distilled = told["models"]["distilled"]
    assert distilled["loss"] == pytest.approx(read_summary(folder)["val_loss"], rel=1e-5)
    # Keys and values of 16 tokens in two layers of width 12; what the student's state takes does not grow.
    assert told["models"]["teacher"]["state_bytes"] == 2 * 2 * 16 * 12 * 4
    assert distilled["parameters"] == told["models"]["from scratch"]["parameters"]


@pytest.mark.slow
def test_the_student_alone_has_the_same_start_and_the_same_tokens(done):
    folder, _ = done
    (first, *_), (other, *_) = (read_metrics(f / "metrics.jsonl") for f in (folder, folder / "baseline"))
    assert first["cross_entropy"] == pytest.approx(other["loss"], rel=1e-6)
    assert first["loss"] == pytest.approx(np.dot([1, 0.5, 0.1], [first[name] for name in TERMS]), rel=1e-5)
    recorded = [json.loads((f / "config.json").read_text()) for f in (folder, folder / "baseline")]
    assert recorded[1]["objective"]["kind"] == "cross_entropy"
    assert [record["train"]["seed"] for record in recorded] == [1337] * 2


@pytest.mark.slow
def test_a_run_records_its_teacher_and_the_map_but_not_its_parameters(done, place):
    folder, out = done
    assert f"teacher: {place / 'teacher'}, " in out
    assert "layers 0:1" in out
    objective = json.loads((folder / "config.json").read_text())["objective"]
    assert objective["layers"] == ["0:1"]
    assert len(objective["teacher"]["digest"]) == 64
    assert objective["teacher"]["model"]["width"] == 12
    config, params = load_run(folder)
    assert mhc_jax.apply(config.model, params, [[1, 2]]).logits_BTV.shape == (1, 2, 257)
    state = last(folder)
    assert state.objective[PROJECTIONS].shape == (1, 16, 12)
    assert sum(x.size for x in jax.tree.leaves(state.params)) == mhc_jax.summary(config.model).parameters


@pytest.mark.slow
def test_what_is_finished_is_scored_again_beside_a_teacher_that_has_moved(done, place, capsys):
    folder, _ = done
    (folder / "distillation.json").unlink()
    (place / "teacher").rename(place / "moved-teacher")
    try:
        distill.main([str(place / "moved-teacher"), "tiny", "--run-dir", str(folder), "--baseline", "--train.resume"])
    finally:
        (place / "moved-teacher").rename(place / "teacher")
    assert capsys.readouterr().out.count("is finished") == 2
    assert (folder / "distillation.json").is_file()


@pytest.mark.slow
def test_an_interrupted_student_goes_on_bitwise_with_its_projections(done, place, monkeypatch, capsys):
    whole, _ = done
    argv = [str(place / "teacher"), "tiny", "--run-dir", str(place / "stopped")]
    batches = run_module.sharding.global_batch

    def interrupting(batch, mesh, count=iter(range(1000))):
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batches(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.sharding, "global_batch", interrupting)
        with pytest.raises(Interrupted, match=r"saved step 3 in .*/stopped; resume with: .* --train.resume$"):
            distill.main(argv)
    begun = last(place / "stopped").objective[PROJECTIONS]
    distill.main([*argv, "--train.resume"])
    state, expected = last(place / "stopped"), last(whole)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert not np.array_equal(begun, state.objective[PROJECTIONS])  # they are trained


@pytest.mark.slow
def test_another_teacher_is_refused_wherever_it_is_named(done, place):
    folder, _ = done
    other = student(place, "elsewhere").replace(model=GPT, run_dir=str(place / "other"))
    other = other.replace(objective=other.objective.without_teacher(), train=other.train.replace(steps=1, seed=1))
    run(other)
    fault = rf"^the teacher {place}/other \(SHA-256 \w+\) is not the one that the run began with, {place}/teacher "
    longer = ["--train.steps", "9", "--train.resume"]
    with pytest.raises(ConfigError, match=fault):
        distill.main([str(place / "other"), "tiny", "--run-dir", str(folder), *longer])
    resumed = RunConfig.from_json((folder / "config.json").read_text())
    resumed = resumed.replace(train=resumed.train.replace(resume=True, steps=9))
    (place / "teacher").rename(place / "away")
    try:
        (place / "other").rename(place / "teacher")
        with pytest.raises(ConfigError, match=r"is not the one that the run began with \(SHA-256 "):
            run(resumed)
        (place / "teacher").rename(place / "other")
        with pytest.raises(ConfigError, match="teacher does not exist; .*; if it has moved, give --objective.teacher"):
            run(resumed)
    finally:
        (place / "away").rename(place / "teacher")
    (place / "moved").symlink_to(place / "teacher")  # the same teacher under another name is none
    moved = resumed.objective.replace(teacher=resumed.objective.teacher.replace(path=str(place / "moved")))
    assert run(resumed.replace(objective=moved, train=resumed.train.replace(steps=STEPS))).summary["steps"] == STEPS


def exported(folder, name, model):
    mhc_jax.save(folder / name, model, mhc_jax.init(model, jax.random.key(0)))


@pytest.mark.parametrize(
    ("teacher", "flags", "fault"),
    [
        ("nowhere", [], "the teacher {}/nowhere does not exist; give a run directory or an exported folder"),
        ("corpus.txt", [], "the teacher {}/corpus.txt is a file; give a run directory or an exported folder"),
        ("teacher", ["--objective.teacher.path", "x"], "--objective.teacher.path is given by TEACHER, {}/teacher;"),
        ("teacher", ["--objective.layers", "0:1", "00:1"], "layers must be pairs STUDENT:TEACHER such as 0:1, got"),
        ("wide", [], "has a vocabulary of 300, the student of 257; give --model.vocab-size 300"),
        ("short", [], "takes 8 tokens at most, --data.seq-len is 16; give --data.seq-len 8 or less"),
        ("teacher", ["--data.tokenizer", "chars"], "reads tokens of bytes, the data are tokens of chars"),
        ("teacher", ["--objective.layers", "1:0"], "--objective.layers 1:0: the student has layers 0 to 0, and no 1"),
        ("teacher", ["--objective", "cross_entropy"], "--objective cross_entropy has no teacher"),
        ("teacher", ["--objective.teacher.digest", "0"], "unknown flag --objective.teacher.digest"),
        ("teacher", ["--objective.temperature", "-1"], "temperature must be at least"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_and_nothing_is_left(place, teacher, flags, fault):
    sizes = {"vocab_size": 257, "max_len": 16}
    if teacher == "wide":
        exported(place, teacher, GPT.replace(**sizes | {"vocab_size": 300}))
    if teacher == "short":
        exported(place, teacher, GPT.replace(**sizes | {"max_len": 8}))
    with pytest.raises(ConfigError) as caught:
        distill.main([str(place / teacher), "tiny", "--run-dir", str(place / "refused"), *flags])
    assert fault.format(place) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (place / "refused").exists()


def test_words_that_are_missing_and_help(place, monkeypatch, capsys):
    for argv, name in (([], "TEACHER"), ([str(place / "teacher")], "STUDENT")):
        with pytest.raises(ConfigError, match=f"^{name} is missing: "):
            distill.main(argv)
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (["--help"], ["runs/teacher", "tiny", "--help"]):
        distill.main(argv)
        out = capsys.readouterr().out
        assert all(word in out for word in ("--baseline", "--objective.kl", "--train.steps", "--help-all"))
        assert max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("system", ["gpt2", "llama"])
def test_a_folder_of_transformers_teaches(system, place, capsys):
    """The student is a transformer over streams, whose last layer is compared with the teacher's."""
    model = GPT.replace(vocab_size=257, max_len=16)
    if system == "llama":
        model = mhc_jax.models.rlm("small", "plain", vocab_size=257, max_len=16, width=16, layers=2)
        model = model.replace(mixer=model.mixer.replace(heads=2, kv_heads=None))
    interop.save_huggingface(place / system, model, mhc_jax.init(model, jax.random.key(0)))
    config = student(place, f"of-{system}", system, layers=("0:1",), hidden_until=0.5)
    config = config.replace(model=with_topology(GPT.replace(layers=1), "mhc"), train=config.train.replace(steps=2))
    run(config)
    assert f"{place / system} holds no tokenizer; its ids are taken for those of bytes" in capsys.readouterr().out
    first, *_ = read_metrics(place / f"of-{system}" / "metrics.jsonl")
    assert all(first[name] > 0 for name in TERMS)


def test_without_the_command_a_teacher_must_be_named(place):
    config = student(place, "nameless")
    with pytest.raises(ConfigError, match="^--objective.teacher.path is missing: run directory"):
        run(config.replace(objective=DistillationConfig()))
    assert not (place / "nameless").exists()


@pytest.mark.slow
def test_a_distilled_run_is_inspected_without_its_teacher(done, monkeypatch, capsys):
    folder, _ = done
    monkeypatch.chdir(folder)
    inspect.main([str(folder)])
    assert "all of these" in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices_share_student_teacher_and_batch(place):
    config = student(place, "two", hidden_until=0.5)
    (place / "two.json").write_text(
        config.replace(model=mhc_ssm("mhc", vocab_size=None, max_len=None, width=16, layers=1)).to_json()
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    worker = Path(__file__).with_name("two_devices.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(place)],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["data"]["losses"]) == STEPS
    np.testing.assert_allclose(report["data"]["losses"], report["fsdp"]["losses"], rtol=1e-4)
    assert (report["data"]["slices"], report["fsdp"]["slices"]) == (1, 2)
