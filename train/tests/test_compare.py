import json
import math

import pytest

from mhc_jax.config import ConfigError
from train import compare
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.report import history


def finished_run(folder, ppl, *, metrics=True, loss=5.0, tokenizer="bytes", source="docstrings"):
    folder.mkdir(parents=True)
    config = RunConfig(data=CorpusConfig(source=source, tokenizer=tokenizer, batch_size=2, seq_len=8))
    (folder / "config.json").write_text(config.to_json())
    summary = {"val_loss": loss, "val_ppl": ppl, "val_bpb": 1.5, "params": 1234, "tokens_per_second": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = (
        [{"step": 1, "loss": 9.0}, {"step": 2, "loss": None}, {"step": 2, "val_loss": 5.0, "val_bpb": 1.5}]
        if metrics
        else []
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_table_and_picture(tmp_path, capsys):
    runs = [finished_run(tmp_path / "a", 148.4), finished_run(tmp_path / "b", 99.5)]
    picture = tmp_path / "compare.png"
    compare.main(runs)
    where, _, header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert where == f"Runs of {tmp_path}"
    assert [cell.strip() for cell in header.strip("|").split("|")][:4] == ["run", "loss", "ppl", "bits per byte"]
    assert first.startswith("| a ")
    assert "148.4" in first
    assert "1,234" in first
    assert "99.5" in second
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_seeds_of_one_folder_are_one_row(tmp_path, capsys):
    runs = [finished_run(tmp_path / "a" / f"seed{seed}", 100 + seed, loss=5.0 + seed) for seed in range(3)]
    runs.append(finished_run(tmp_path / "b" / "seed0", 99.5))
    compare.main([*runs, "--mean", "--picture", str(tmp_path / "curves.png")])
    header, _, first, second = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:6]
    )
    assert header[:4] == ["runs", "seeds", "loss", "ppl"]
    assert first[:4] == ["a", "3", "6.0000 ± 1.0000", "101"]
    assert second[:4] == ["b", "1", "5", "99.5"]


@pytest.mark.parametrize(
    ("tokenizers", "unit", "last"), [("bytes", "nats per token", 5.0), ("gpt2", "bits per byte", 1.5)]
)
def test_curves_of_different_tokenizers_are_bits_per_byte_over_tokens(tmp_path, tokenizers, unit, last):
    finished_run(tmp_path / "a", 9.0)
    finished_run(tmp_path / "b", 9.0, tokenizer=tokenizers)
    axes = compare.draw_curves({name: [tmp_path / name] for name in "ab"}).axes[0]
    assert axes.get_ylabel() == unit
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in marked] == [[[32, last]]] * 2  # 2 steps of 2 x 8 tokens
    assert [text.get_text() for text in axes.get_legend().texts] == ["a", "b"]


def test_runs_on_different_corpora_stand_apart(tmp_path, capsys):
    runs = [finished_run(tmp_path / name, 9.0, source=source) for name, source in zip("abc", ["x", "y", "x"])]
    first, second = compare.draw_curves({name: [tmp_path / name] for name in "abc"}).axes
    assert [axes.get_title() for axes in (first, second)] == ["x", "y"]
    legends = [[text.get_text() for text in axes.get_legend().texts] for axes in (first, second)]
    assert legends == [["a", "c"], ["b"]]
    compare.main(runs)
    _, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[1:4:2] == ["run", "data"]
    assert [row.split()[3] for row in rows[:3]] == ["x", "y", "x"]
    _, lines = compare.experiments({name: tmp_path / name for name in "ab"})
    assert [*lines] == ["a on x", "b on y"]


def test_a_picture_is_no_summary(tmp_path):
    with pytest.raises(ConfigError, match=r"curves\.json is the name of its summary; call it .*curves\.png"):
        compare.main([finished_run(tmp_path / "a", 9.0), "--picture", str(tmp_path / "curves.json")])
    assert not (tmp_path / "curves.json").exists()


def test_what_runs_share_is_no_column(tmp_path):
    bytes_, gpt2 = (RunConfig(data=CorpusConfig(tokenizer=name)) for name in ("bytes", "gpt2"))
    assert compare.measures({"a": [bytes_], "b": [bytes_]}) == {"a": {}, "b": {}}
    assert compare.measures({"a": [bytes_], "b": [gpt2]}) == {"a": {"tokenizer": "bytes"}, "b": {"tokenizer": "gpt2"}}


def test_losses_by_step_are_summed_up_with_those_of_scored_checkpoints(tmp_path, capsys):
    finished_run(tmp_path / "a", 9.0)
    finished_run(tmp_path / "b", 9.0, metrics=False)
    (tmp_path / "b" / "summary.json").unlink()
    result = {"split": "validation", "seq_len": 8, "data": "docstrings"}
    scored = [
        {**result, "step": step, "val_loss": loss, "val_ppl": math.exp(loss)}
        for step, loss in ((2, 4.0), (4, 3.0), (6, 3.5))
    ]
    scored.append({**scored[0], "data": "wiki", "split": "test", "val_loss": 7.0})
    (tmp_path / "b" / "eval_results.json").write_text(json.dumps({"results": scored}))
    compare.main([str(tmp_path / name) for name in "ab"])
    found = json.loads((tmp_path / "compare.json").read_text())["experiments"]
    assert [(row["name"], row["data"]) for row in found] == [
        ("a", "docstrings"),
        ("b", "docstrings"),
        ("b", "wiki (test)"),
    ]
    assert found[1] == {
        "name": "b",
        "path": str(tmp_path / "b"),
        "data": "docstrings",
        "final_step": 6,
        "final_loss": 3.5,
        "final_ppl": pytest.approx(math.exp(3.5)),
        "best_step": 4,
        "best_loss": 3.0,
        "best_ppl": pytest.approx(math.exp(3)),
    }
    assert (tmp_path / "compare_steps.png").read_bytes().startswith(b"\x89PNG")
    assert "final_ppl" in capsys.readouterr().out
    loss, ppl = history.draw({"b": [(2, 4.0, 50.0), (4, 3.0, 20.0)]}, "").axes
    assert loss.lines[0].get_xydata().tolist() == [[2, 4.0], [4, 3.0]]
    assert ppl.lines[0].get_ydata().tolist() == [50, 20]
    ppl.figure.draw_without_rendering()
    assert "20" in [label.get_text() for label in ppl.get_yticklabels(which="both")]
    assert len(history.draw({"error of a task": [(2, 4.0, None)]}, "").axes) == 1


def test_damaged_scores_are_named(tmp_path):
    run = finished_run(tmp_path / "a", 9.0)
    (tmp_path / "a" / "eval_results.json").write_text('{"results": [{"step": 1}]}')
    with pytest.raises(ConfigError, match="eval_results.json is damaged"):
        compare.main([run])


@pytest.mark.parametrize("argv", [[], ["{}/nowhere"], ["{}/damaged"]])
def test_faults_are_named(tmp_path, argv):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"at least one run|does not exist|damaged|Missing"):
        compare.main([arg.format(tmp_path) for arg in argv])
