"""Errors by length: the command from its flags to its files, what each length counts, and what is refused first."""

import json
import shutil

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.models import gpt2, mhc_ssm
from mhc_jax.nn.mixers import AttentionConfig
from train import state_tracking
from train.config import LogConfig, OptimConfig, RunConfig, TrainConfig
from train.data.group_words import GroupWordsConfig
from train.measure.places import by_place
from train.objectives.cross_entropy import CrossEntropyConfig
from train.terminal.interrupt import Interrupted

MODELS = {
    "tiny_ssm": mhc_ssm("baseline", vocab_size=None, max_len=None, width=16, layers=1, positions="none"),
    "tiny_gpt": gpt2(vocab_size=None, max_len=None, width=8, layers=1, mixer=AttentionConfig(heads=2)),
}
S5 = "--train-flags=--data.group s5"
WORDS = GroupWordsConfig(seq_len=4, batch_size=32, stage_steps=10, eval_count=1)


def tiny(name):
    def config():
        """A tiny model."""
        return RunConfig(
            name=name,
            model=MODELS[name],
            data=WORDS,
            objective=CrossEntropyConfig(errors=True),
            optim=OptimConfig(lr=3e-2, warmup_steps=0, decay_steps=40),
            train=TrainConfig(steps=40, eval_every=0),
            log=LogConfig(progress=False),
        )

    return config


@pytest.fixture(scope="module", autouse=True)
def names():
    for name in MODELS:
        registry.register("config", name)(tiny(name))
    yield
    for name in MODELS:
        registry._REGISTRY["config"].pop(name)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("tracking") / "out"
    state_tracking.main([*MODELS, "--out", str(out), "--words", "200", "--lengths", "8", "1", "2"])
    return out


def test_errors_by_length_are_written_drawn_and_printed(done, capsys):
    written = (done / "state_tracking.json").read_text()
    capsys.readouterr()
    # Everything is trained: a run is scored under the name of a configuration as by its folder.
    state_tracking.main([*MODELS, "--out", str(done), "--words", "200", "--lengths", "8", "1", "2"])
    printed = capsys.readouterr().out
    assert (done / "state_tracking.json").read_text() == written
    found = json.loads(written)
    assert (found["group"], found["words"], found["chance"]) == ("s3", 256, pytest.approx(5 / 6))
    assert {"jax", "python"} <= found["versions"].keys()
    assert found["models"].keys() == MODELS.keys()
    ssm = found["models"]["tiny_ssm"]
    assert (ssm["lengths"], ssm["trained_length"], ssm["steps"]) == ([1, 2, 8], 4, 40)
    for model in found["models"].values():
        assert model["last_errors"][0] == model["error_rates"][0] < 0.2  # the first target is the first action
        assert model["error_rates"] == sorted(model["error_rates"])
        assert all(loss > 0 for loss in model["losses"])
    assert (done / "state_tracking.png").read_bytes()[:4] == b"\x89PNG"
    assert max(map(len, printed.splitlines())) <= 80 + len(str(done))
    assert "| a guess  | 0.833 | 0.833 | 0.833 |" in printed


@pytest.mark.slow
def test_a_scan_learns_the_group_and_carries_it_further(tmp_path):
    """Words of S3, up to 12 actions in training: the tree's operator is the group's table."""
    state_tracking.main(["words_transformer_scan", "--out", str(tmp_path), "--lengths", "8", "16", "24"])
    found = json.loads((tmp_path / "state_tracking.json").read_text())["models"]["words_transformer_scan"]
    trained, beyond, doubled = found["error_rates"]
    assert trained < 0.01
    assert beyond < 0.05
    assert doubled < 0.05


def test_a_finished_run_is_scored_by_its_folder(done, tmp_path, capsys):
    state_tracking.main([str(done / "tiny_ssm"), "--out", str(tmp_path / "new"), "--words", "200", "--lengths", "8"])
    again = json.loads((tmp_path / "new" / "state_tracking.json").read_text())["models"]
    before = json.loads((done / "state_tracking.json").read_text())["models"]["tiny_ssm"]
    assert [model["error_rates"][-1] for model in again.values()] == before["error_rates"][-1:]


def test_every_length_counts_its_own_places():
    model = MODELS["tiny_ssm"].replace(vocab_size=6, max_len=4)
    params = mhc_jax.init(model, jax.random.key(0))
    run = RunConfig(name="tiny", model=model, data=WORDS)
    errors_T, losses_T = by_place(run, params, 6)
    batch = next(iter(WORDS.replace(seq_len=6).load().evaluation("test")))
    logits = np.asarray(mhc_jax.apply(model.replace(max_len=6), params, batch["inputs"]).logits_BTV, np.float64)
    np.testing.assert_allclose(errors_T, (logits.argmax(-1) != batch["targets"]).mean(0))
    picked = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(losses_T, (np.log(np.exp(logits).sum(-1)) - picked).mean(0), rtol=1e-5)
    scores = state_tracking.Scores(run, errors_T, losses_T)
    np.testing.assert_allclose(scores.error_rates_T[2], errors_T[:3].mean())


@pytest.mark.slow
def test_what_is_interrupted_goes_on_where_it_was(done, tmp_path, monkeypatch):
    """The first model is finished, the second was stopped in its training."""
    out, trained = tmp_path / "out", []
    shutil.copytree(done / "tiny_ssm", out / "tiny_ssm")
    real = state_tracking.run_to_end

    def stopping(run, command):
        if not run.train.resume:
            real(run.replace(train=run.train.replace(steps=25)), command)
            raise Interrupted(15, "interrupted")
        trained.append((run.name, run.train.resume))
        real(run, command)

    monkeypatch.setattr(state_tracking, "run_to_end", stopping)
    argv = [*MODELS, "--out", str(out), "--words", "200", "--lengths", "8", "1", "2"]
    with pytest.raises(Interrupted):
        state_tracking.main(argv)
    state_tracking.main(argv)
    assert trained == [("tiny_gpt", True)]
    once, twice = (json.loads((folder / "state_tracking.json").read_text())["models"] for folder in (done, out))
    for name in MODELS:
        assert once[name]["error_rates"] == twice[name]["error_rates"]


def test_learned_positions_are_as_many_as_the_longest_word(done):
    lengths = {name: json.loads((done / name / "config.json").read_text())["model"]["max_len"] for name in MODELS}
    assert lengths == {"tiny_ssm": 4, "tiny_gpt": 8}
    for name, fault in ((str(done / "tiny_gpt"), "has positions for 8 tokens and none for 9"), ("tiny_gpt", "was 8")):
        with pytest.raises(ConfigError, match=fault):
            state_tracking.main([name, "--out", str(done), "--lengths", "9"])


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        ([], "NAME is missing|MODELS"),
        (["tiny_sm"], "unknown config 'tiny_sm'.*tiny_ssm"),
        (["tiny_ssm@mch"], "mch"),
        (["tiny_ssm", "tiny_ssm"], "a name stands twice"),
        (["quickstart"], "quickstart is trained on docstrings, not on words of a group"),
        (["tiny_ssm", "--lengths", "4", "0"], "--lengths must be at least 1"),
        (["tiny_ssm", "--words", "0"], "--words must be at least 1"),
        (["tiny_ssm", "--seed=-1"], "--seed must be at least 0, got -1"),
        (["tiny_ssm", "--train-flags='"], "--train-flags cannot be split"),
        (["tiny_ssm", "--train-flags=--data.group s4"], "s4|group"),
        (["tiny_ssm", "--train-flags=--data.seq-len 0"], "seq_len must be at least 1"),
        (
            ["tiny_ssm", "--train-flags=--train.steps 20"],
            "words reach 4 actions at step 21, and training ends at step 20",
        ),
        (["tiny_ssm", "tiny_gpt", "--train-flags=--data.grop s5"], "unknown flag --data.grop"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(argv, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(state_tracking, "run_to_end", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match=fault):
        state_tracking.main([*argv, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_runs_of_different_tasks_and_unfinished_ones_are_refused(done, tmp_path):
    with pytest.raises(ConfigError, match="words of s5, .* of words of s3; give runs of one task"):
        state_tracking.main([str(done / "tiny_ssm"), "tiny_gpt", "--out", str(tmp_path), S5])
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text((done / "tiny_ssm" / "config.json").read_text())
    with pytest.raises(ConfigError, match="begun has not finished; continue it with"):
        state_tracking.main([str(tmp_path / "begun"), "--out", str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no run"):
        state_tracking.main([str(tmp_path / "empty"), "--out", str(tmp_path)])
