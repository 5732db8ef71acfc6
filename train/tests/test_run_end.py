"""Scores, the end of a run, and what a run that was stopped there or before its first step goes on with."""

import contextlib
import io
import os
import re
import shutil
import signal
import types

import pytest

from mhc_jax.config import ConfigError
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.loop import run as run_module
from train.loop.run import run
from train.measure.scores import evaluate_split
from train.report import figures
from train.report.losses import draw_losses
from train.storage.checkpoint import Checkpoints
from train.storage.folder import CONFIG_FILE, read_metrics, read_summary
from train.storage.restore import load_run
from train.terminal.interrupt import Interrupted
from train.tests.runs import measured, tiny_run

STEPS = 12


class Killed(Exception):
    pass


def config_in(folder):
    """Three evaluations, each on one of the three batches of the validation split."""
    config = tiny_run(folder)
    return config.replace(
        train=config.train.replace(steps=STEPS, eval_every=4, eval_batches=1),
        checkpoint=config.checkpoint.replace(every=5),
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: its configuration, folder and summary."""
    folder = tmp_path_factory.mktemp("done")
    config = config_in(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        summary = run(config).summary
    return types.SimpleNamespace(config=config, folder=folder / "run", summary=summary, printed=printed.getvalue())


@pytest.mark.slow
def test_scores_say_how_much_of_the_split_they_are_of(done):
    found = re.findall(r"^step (\d+)  val_loss .*\((.*)\)$", done.printed, re.MULTILINE)
    assert found == [("4", "1 batch"), ("8", "1 batch"), ("12", "1 batch"), ("12", "whole split")]


@pytest.fixture
def other(done, tmp_path):
    """The same run in a folder of its own."""
    return done.config.replace(run_dir=str(tmp_path / "other"))


def resumed(config, **changes):
    return config.replace(train=config.train.replace(resume=True, **changes))


def call_nth(monkeypatch, name, count, act):
    """Before the ``count``-th call of a function of the loop something happens."""
    function, calls = getattr(run_module, name), iter(range(1, 1000))

    def acting(*args, **options):
        if next(calls) == count:
            act()
        return function(*args, **options)

    monkeypatch.setattr(run_module, name, acting)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refuse(*args, **options):
    raise AssertionError("too late")


def test_the_best_is_judged_by_one_measure_and_the_whole_split_stands_apart(done):
    lines = read_metrics(done.folder / "metrics.jsonl")
    judged = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert list(judged) == [4, 8, 12]
    (whole,) = (line for line in lines if "final_val_loss" in line)
    assert whole["step"] == STEPS
    assert done.summary["val_loss"] == whole["final_val_loss"] != judged[STEPS]
    assert done.summary["best_val_loss"] == min(judged.values())
    checkpoints = Checkpoints(done.folder, 2)
    assert checkpoints.best_step() == min(judged, key=judged.get)
    assert checkpoints.metric(STEPS) == judged[STEPS]

    config, params = load_run(done.folder, "last")
    scores = evaluate_split(config, params, config.data.load())
    assert whole["final_val_loss"] == pytest.approx(scores["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_loss_of_the_whole_split_above_all_others_does_not_change_the_best(done, other, monkeypatch):
    """Each evaluation counts as a call; the fourth is that of the whole split."""
    losses = iter([3.0, 2.0, 1.0, 9.0])
    monkeypatch.setattr(run_module, "evaluate", lambda *_: {"loss": next(losses) * 128, "tokens": 128})
    summary = run(other).summary
    assert (summary["best_val_loss"], summary["val_loss"]) == (1.0, 9.0)
    assert Checkpoints(run_module.run_folder(other), 2).best_step() == STEPS


def test_the_picture_joins_equal_measures_only():
    axes = figures.new_figure(4, 3).subplots()
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "val_loss": 2.0}, {"step": 4, "val_loss": 1.0}]
    draw_losses(axes, [*lines, {"step": 4, "final_val_loss": 5.0}], {}, tokens_per_step=128)
    training, validation, whole = axes.lines
    assert training.get_xydata().tolist() == [[1, 3.0]]
    assert validation.get_xydata().tolist() == [[2, 2.0], [4, 1.0]]
    assert validation.get_linestyle() == "-"
    assert whole.get_xydata().tolist() == [[4, 5.0]]
    assert whole.get_linestyle() == "None"
    (tokens,) = axes.child_axes
    assert tokens.get_xlabel() == "training tokens"


def test_a_run_killed_while_it_is_scored_has_lost_nothing(done, other, monkeypatch):
    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        call_nth(patch, "evaluate", 4, kill)
        with pytest.raises(Killed):
            run(other)
    folder = run_module.run_folder(other)
    assert Checkpoints(folder, 2).latest_step() == STEPS
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(run_module, "_compile_train_step", refuse)
    summary = run(resumed(other)).summary
    for name in ("val_loss", "val_bpb", "best_val_loss", "steps", "tokens"):
        assert summary[name] == done.summary[name]
    assert summary["tokens"] == STEPS * 8 * 16
    assert summary["tokens_per_second"] > 0
    assert read_metrics(folder / "metrics.jsonl")[-1]["final_val_loss"] == summary["val_loss"]
    assert measured(folder) == measured(done.folder)


@pytest.mark.parametrize(
    ("evaluation", "step"),
    [(1, 4), *(pytest.param(*ends, marks=pytest.mark.slow) for ends in ((2, 8), (3, 12), (4, 12)))],
)
def test_a_signal_during_an_evaluation_saves_and_the_score_is_made_up_for(done, other, monkeypatch, evaluation, step):
    folder = run_module.run_folder(other)
    with monkeypatch.context() as patch:
        call_nth(patch, "evaluate", evaluation, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted) as stop:
            run(other, resume_command="again")
    assert str(stop.value) == f"interrupted: saved step {step} in {folder}; resume with: again"
    assert stop.value.number == signal.SIGINT
    checkpoints = Checkpoints(folder, 2)
    assert checkpoints.latest_step() == step
    assert (checkpoints.metric(step) is None) == (evaluation < 4)
    summary = run(resumed(other)).summary
    assert measured(folder) == measured(done.folder)
    assert summary["best_val_loss"] == done.summary["best_val_loss"]


def test_a_finished_run_says_so_at_once_and_writes_nothing(done, monkeypatch, capsys):
    before = contents(done.folder)
    monkeypatch.setattr(CorpusConfig, "load", refuse)
    assert run(resumed(done.config)).summary == done.summary
    assert f"{done.folder} is finished: 12 steps" in capsys.readouterr().out
    assert contents(done.folder) == before


def test_a_run_has_no_fewer_steps_than_it_has_done(done, monkeypatch):
    before = contents(done.folder)
    monkeypatch.setattr(CorpusConfig, "load", refuse)
    with pytest.raises(ConfigError, match=r"^--train.steps 11: the run in .* has done 12 steps, more than 11; give"):
        run(resumed(done.config, steps=11))
    assert contents(done.folder) == before


@pytest.mark.slow
def test_a_longer_run_keeps_the_best_of_the_shorter_one(done, other, monkeypatch):
    folder = run_module.run_folder(other)
    shutil.copytree(done.folder, folder)
    monkeypatch.setattr(run_module, "evaluate", lambda *_: {"loss": 9.0 * 128, "tokens": 128})
    summary = run(resumed(other, steps=16)).summary
    assert summary["best_val_loss"] == done.summary["best_val_loss"]
    assert summary["tokens"] == 16 * 8 * 16
    assert Checkpoints(folder, 2).best_step() == Checkpoints(done.folder, 2).best_step()


def test_a_run_stopped_before_its_first_step_starts_again(done, other, monkeypatch):
    def kill():
        raise Killed

    folder = run_module.run_folder(other)
    for lr in (0.5, other.optim.lr):  # also with other flags: nothing was trained with the first ones
        with monkeypatch.context() as patch:
            call_nth(patch, "_compile_train_step", 1, kill)
            with pytest.raises(Killed):
                run(other.replace(optim=other.optim.replace(lr=lr)))
        assert RunConfig.from_json((folder / CONFIG_FILE).read_text()).optim.lr == lr
    assert run(other).summary["val_loss"] == done.summary["val_loss"]


def test_nothing_is_finished_where_nothing_was_begun(other):
    fresh = resumed(other, steps=0)  # as many steps as its epochs have, which nothing tells yet
    assert run_module.finished(fresh) is None
    assert run_module.finished(fresh, STEPS) is None
    assert run_module.finished(other, STEPS) is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_what_a_person_would_miss_is_not_started_over(done, other, name):
    folder = run_module.run_folder(other)
    folder.mkdir()
    for file in (CONFIG_FILE, name):
        shutil.copy(done.folder / file, folder)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(other)


NO_STEP = ('{"loss": 1.0}', "[1]", "3", '{"step": "2"}', '{"step": true}', '{"step": 1.5}')
NO_JSON = ("{", "", "[" * 100_000, "1" * 5000)
NO_NUMBER = ('{"step": 2, "loss": "low"}', '{"step": 2, "streams": 3}')


@pytest.mark.parametrize("line", NO_STEP + NO_JSON + NO_NUMBER)
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": null}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ConfigError, match=rf"^{file}, line 2 is damaged \(.{{1,200}}\); remove that line$"):
        read_metrics(file)


def test_bytes_that_are_no_text_and_a_half_line_at_the_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]
    file.write_bytes(b'{"step": 1}\n{"step": 2, "a\xff": 1}\n')
    with pytest.raises(ConfigError, match="line 2 is damaged"):
        read_metrics(file)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff", "[" * 100_000])
def test_a_damaged_summary_is_named(tmp_path, text):
    (tmp_path / "summary.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"summary.json is damaged \("):
        read_summary(tmp_path)
