import json
import math
import shutil

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from train import evaluate
from train.config import RunConfig, TrainConfig
from train.data import load_corpus, load_tokenizer
from train.data.text_data import word_ppl
from train.measure import scores
from train.report import history
from train.storage.checkpoint import Checkpoints
from train.tests.tiny import tiny_export
from train.update.optimizer import make_optimizer
from train.update.state import trained_info
from train.update.step import init_state


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def windows_loss(config, params, tokens):
    """Mean loss by whole logits, window by window, in float64."""
    T = config.data.seq_len
    count = (len(tokens) - 1) // T
    rows = np.stack([tokens[i * T : i * T + T + 1] for i in range(count)]).astype(np.int32)
    logits = np.asarray(mhc_jax.apply(config.model, params, rows[:, :-1]).logits_BTV, np.float64)
    picked = np.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
    return float(np.mean(np.log(np.exp(logits).sum(-1)) - picked)), count * T


@pytest.mark.slow
def test_every_target_of_the_split_weighs_the_same(tiny):
    config, params, _ = tiny
    corpus = load_corpus(config.data)
    expected, count = windows_loss(config, params, np.asarray(corpus.validation))
    assert count % (config.data.batch_size * config.data.seq_len), "the last batch must be a short one"
    found = scores.evaluate_split(config, params, config.data.load())
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["ppl"] == pytest.approx(math.exp(expected), rel=1e-5)
    per_byte = len(corpus.validation) / corpus.validation_bytes
    assert found["bpb"] == pytest.approx(expected / math.log(2) * per_byte, rel=1e-5)


def test_sums_over_batches_are_not_means_of_means(tiny):
    batches = [{"loss": 10.0, "tokens": 2, "error": 1}, {"loss": 1.0, "tokens": 8, "error": 3}]
    sums = scores.evaluate(lambda _, batch: batch, None, batches)
    assert sums == {"loss": 11.0, "tokens": 10, "error": 4}
    data = tiny[0].data.load()
    corpus = load_corpus(tiny[0].data)
    per_byte = len(corpus.validation) / corpus.validation_bytes
    assert data.scores("validation", sums) == {
        "loss": 1.1,
        "ppl": math.exp(1.1),
        "bpb": pytest.approx(1.1 / math.log(2) * per_byte),
        "error": 0.4,
        "tokens": 10,
    }


def test_huge_losses_give_infinite_perplexity(tiny):
    assert tiny[0].data.load().scores("validation", {"loss": 1e4, "tokens": 10})["ppl"] == math.inf


@pytest.mark.parametrize("batches", [[{"loss": 0.0, "tokens": 0}], []])
def test_nothing_to_predict_is_an_error(batches):
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        scores.evaluate(lambda _, batch: batch, None, batches)


@pytest.mark.parametrize(
    ("rows", "words"),
    [(["two words", ""], 4), (["one", "two", "three\n"], 6), (["one ", " two"], 4), (["cut off", None], 3), ([""], 1)],
)
def test_word_perplexity_counts_words_and_rows(rows, words):
    tokenizer = load_tokenizer("bytes")
    # None stands for a last row that is cut off before its end token.
    tokens = [token for row in rows if row is not None for token in [*tokenizer.encode(row), tokenizer.eos_id]]
    tokens = np.array(tokens[: -1 if None in rows else None])
    expected = math.exp(0.5 * len(tokens) / (words - (None in rows)))
    assert word_ppl(0.5, tokens, tokenizer) == pytest.approx(expected)


@pytest.mark.slow
def test_command_prints_the_same_numbers(tiny, capsys):
    config, params, folder = tiny
    evaluate.main([str(folder), "--json"])
    row = json.loads(capsys.readouterr().out)
    expected, _ = windows_loss(config, params, np.asarray(load_corpus(config.data).validation))
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    evaluate.main([str(folder), str(folder), "--data.batch-size", "2"])
    table = capsys.readouterr().out
    assert table.count(f"{row['ppl']:.4g}") == 2  # a row a run
    evaluate.main([str(folder), str(folder), "--json"])
    assert [json.loads(line)["loss"] for line in capsys.readouterr().out.splitlines()] == [row["loss"]] * 2


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--split", "test"], "no test split"),
        (["--data.seq-len", "64"], "max_len 32 is shorter"),
        (["--data.sorce", "x"], "did you mean --data.source"),
        (["--data.tokenizer", "gpt2"], "outside the vocabulary of 257"),
    ],
)
def test_faults_are_named_before_anything_is_compiled(tiny, argv, fault):
    with pytest.raises(ConfigError, match=fault):
        evaluate.main([str(tiny[2]), *argv])


def test_of_several_runs_the_one_at_fault_is_named(tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny[2], other)
    config = RunConfig.from_json((other / "run.json").read_text())
    split = tmp_path / "split"
    split.mkdir()
    for name in ("train", "validation", "test"):
        shutil.copy(config.data.source, split / f"{name}.txt")
    (other / "run.json").write_text(config.replace(data=config.data.replace(source=str(split))).to_json())
    with pytest.raises(ConfigError, match=f"^{tiny[2]}: .* no test split"):
        evaluate.main([str(other), str(tiny[2]), "--split", "test"])


def test_missing_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as exit:
        evaluate.cli.run(evaluate.main)
    assert exit.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


STEPS = (3, 10)


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory):
    """A run with two checkpoints, and the parameters of both."""
    config, _, _ = tiny
    folder = tmp_path_factory.mktemp("kept") / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.jsonl").write_text('{"step": 3, "val_loss": 9.0}\n{"step": 5, "val_loss": 8.0}\n')
    optimizer, saved = make_optimizer(config.optim, 10, trained_info(config)), {}
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in STEPS:
            state = init_state(config.replace(train=TrainConfig(seed=step)), optimizer)
            checkpoints.save(step, state, {}, {}, metric=None)
            saved[step] = jax.device_get(state.params)
    return config, folder, saved


def test_chosen_checkpoints_are_scored_and_their_scores_stay_in_the_run(kept, tmp_path, capsys):
    config, run, saved = kept
    evaluate.main([str(run), "--steps", "10", "3", "--json"])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tokens = np.asarray(load_corpus(config.data).validation)
    expected = {step: windows_loss(config, params, tokens)[0] for step, params in saved.items()}
    assert {row["step"]: row["loss"] for row in printed} == pytest.approx(expected, rel=1e-5)
    assert expected[3] != pytest.approx(expected[10], rel=1e-3)
    other = tmp_path / "other.txt"
    other.write_text("something else to read\n" * 200)
    evaluate.main([str(run), "--steps", "3", "--data.source", str(other)])
    evaluate.main([str(run), "--steps", "3", "--data.source", str(other)])
    found = json.loads((run / "eval_results.json").read_text())
    assert found["model"] == "tiny"
    expected_keys = [*((config.data.source, step) for step in STEPS), (str(other), 3)]
    assert [(one["data"], one["step"]) for one in found["results"]] == sorted(expected_keys)
    for one in found["results"]:
        assert one["val_ppl"] == pytest.approx(math.exp(one["val_loss"]))
    assert (run / "eval_curve.png").read_bytes().startswith(b"\x89PNG")
    lines = history.history(run, config)
    assert [point[:2] for point in lines[config.data.source]] == [
        (step, pytest.approx(expected[step])) for step in STEPS
    ], "not those logged"
    assert {*lines} == {config.data.source, str(other)}


@pytest.mark.parametrize(
    ("steps", "fault"),
    [
        (["3", "4"], "run has no checkpoint of step 4; it has 3, 10"),
        (["3", "--data.source", "/nowhere.txt"], "run: .*nowhere"),
        (["x"], "--steps"),
    ],
)
def test_missing_checkpoints_and_data_are_named_before_anything_is_scored(kept, steps, fault, capsys):
    with pytest.raises(ConfigError, match=fault):
        evaluate.main([str(kept[1]), "--steps", *steps])
    assert capsys.readouterr().out == ""


def test_an_export_has_no_steps(tiny):
    with pytest.raises(ConfigError, match="not a run directory"):
        evaluate.main([str(tiny[2]), "--steps", "3"])
