import json

import jax
import numpy as np
import pytest
import torch

from mhc_jax.config import ConfigError
from train.benchmark import __main__ as benchmark
from train.benchmark import cases, driver, jax_worker, torch_worker, worker
from train.benchmark.driver import Contender, Timing, WorkerError, alternate
from train.measure.scores import evaluate_split
from train.tests.tiny import tiny_export

SLEEPER = "train.tests.sleeper"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def sleeper(tmp_path, name, seconds, **options):
    return Contender(SLEEPER, {"name": name, "seconds": seconds, "log": str(tmp_path / "log")}, **options)


def test_contenders_take_turns_and_are_timed(tmp_path):
    found = alternate({"a": sleeper(tmp_path, "a", 0.02), "b": sleeper(tmp_path, "b", 0.06)}, rounds=2, calls=2)
    assert (tmp_path / "log").read_text() == "ab" + "aabb" * 2
    assert 0.02 <= found["a"].median_s < found["b"].median_s
    for timing in found.values():
        assert timing.low_s <= timing.median_s <= timing.high_s
        assert (timing.peak_bytes, timing.calls) == (1234, 4)


def test_slow_eager_contender_is_called_once(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "SLOW_S", 0.03)
    contenders = {
        "e": sleeper(tmp_path, "e", 0.04, eager=True),
        "c": sleeper(tmp_path, "c", 0.04),
    }
    found = alternate(contenders, rounds=2, calls=1)
    assert (tmp_path / "log").read_text() == "ec" + "cc"
    assert (found["e"].calls, found["c"].calls) == (1, 2)
    assert found["e"].median_s == found["e"].first_s


def test_failure_of_a_contender_is_told_and_ends_the_others(tmp_path):
    good = sleeper(tmp_path, "g", 0.0)
    with pytest.raises(WorkerError, match="'bad' failed: ValueError: out of order"):
        alternate({"good": good, "bad": Contender(SLEEPER, {"broken": True})}, rounds=1, calls=1)
    assert (tmp_path / "log").read_text() == "g"


class FakePlan(cases.Plan):
    """Takes no time: seconds by contender."""

    def time(self, contenders):
        seconds = {"triad": 3e-3, "original loop": 1.0}
        return {name: Timing(seconds.get(name, 0.01), 0.01, 0.01, 0.5, 2**20, 1) for name in contenders}


def test_recurrence_is_set_against_floor_and_loop():
    rows, _ = cases.scan(FakePlan(1, 1, "python"), (8,), batch=2, width=4, chunk=4)
    by_name = {row["contender"]: row for row in rows}
    assert by_name["floor"]["ms"] == pytest.approx(5.0), "five arrays, where the triad moves three in 3 ms"
    assert by_name["jax sequential"]["over floor"] == pytest.approx(2.0)
    assert by_name["jax sequential"]["loop over it"] == pytest.approx(100.0)
    assert {"jax associative", "jax chunked", "torch compiled chunked", "original loop"} <= by_name.keys()


def test_speed_counts_the_tokens_of_the_whole_batch(tiny):
    config, _, folder = tiny
    rows, _ = cases.train(config, folder, FakePlan(1, 1, "python"), (2, 4))
    assert [row["tokens/s"] for row in rows] == pytest.approx([3200.0] * 3 + [6400.0] * 3)
    rows, _ = cases.decode(config, folder, FakePlan(1, 1, "python"), (3,))
    assert rows[0]["tokens/s"] == pytest.approx(3 * 16 / 0.01)


def specs(config, folder):
    data = config.data.replace(batch_size=2)
    common = {"weights": str(folder), "policy": "float32", "compile": False}
    return {
        "train": {"kind": "train", "config": config.replace(data=data).to_dict(), **common},
        "decode": {"kind": "decode", "batch": 2, "prompt": 3, "tokens": 4, **common},
        "scan": {"kind": "scan", "batch": 2, "time": 6, "width": 4, "form": "chunked", "chunk": 4, "compile": False},
    }


@pytest.mark.parametrize("kind", ["train", "decode", "scan"])
def test_pytorch_side_runs_every_case(tiny, kind, monkeypatch):
    config, _, folder = tiny
    monkeypatch.setattr(torch_worker, "cores", lambda: 1)
    losses = []
    original = torch_worker.train_step
    monkeypatch.setattr(torch_worker, "train_step", lambda *a, **k: losses.append(float(original(*a, **k))))
    step = torch_worker.build(specs(config, folder)[kind])
    for _ in range(30 if kind == "train" else 1):
        step()
    assert torch.get_num_threads() == 1
    if kind == "train":
        assert losses[-1] < losses[0], "thirty steps on one batch must learn it"


@pytest.mark.parametrize("kind", ["decode", "scan"])
def test_jax_side_runs(tiny, kind):
    config, _, folder = tiny
    found = jax_worker.build(specs(config, folder)[kind])()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_original_loop_and_forms_agree_in_the_worker():
    spec = {"kind": "scan", "batch": 2, "time": 6, "width": 4, "chunk": 4, "compile": False}
    u, *gains = torch.randn(2, 6, 4), *torch.randn(4, 4)
    forms = ("original loop", "chunked")
    loop, chunked = (torch_worker._recurrence({**spec, "form": form})(u, *gains) for form in forms)
    torch.testing.assert_close(loop, chunked)


@pytest.mark.slow
def test_command_times_training_and_restores_weights_before_perplexity(tiny, tmp_path, capsys):
    config, params, folder = tiny
    argv = ["quickstart", "--checkpoint", str(folder), "--ppl", "True", "--torch", "False", "--batch-sizes", "2"]
    argv += ["--rounds", "1", "--calls", "1", "--out", str(tmp_path), "--data.source", config.data.source]
    argv += ["--data.seq-len", "16", "--data.batch-size", "4", "--data.cache-dir", config.data.cache_dir]
    benchmark.main(argv)
    printed = capsys.readouterr()
    assert "jax: first call" in printed.err  # what is done is told as it is done
    assert "round 1 of 1: jax" in printed.err
    assert max(map(len, printed.out.splitlines())) <= 80 + len(str(tmp_path))
    document = (tmp_path / "train-quickstart.md").read_text()
    found = json.loads((tmp_path / "train-quickstart.json").read_text())
    assert [row["contender"] for row in found["rows"]] == ["jax"]
    assert found["rows"][0]["tokens/s"] > 0
    assert found["config"]["model"] == config.model.to_dict()
    expected = evaluate_split(config, params, config.data.load())
    assert f"perplexity {expected['ppl']:.2f}," in found["notes"][-1]
    assert "restored after timing" in found["notes"][-1]
    assert found["notes"][-1] in document
    assert f"- processor: {found['processor']}" in document


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["quickstrat"], "did you mean 'quickstart'"),
        (["quickstart", "--rounds", "0"], "rounds must be at least 1"),
        (["quickstart", "--waht", "scan"], "did you mean --what"),
        (["quickstart", "--what", "nap"], "nap"),
        (["--what", "scan", "quickstart"], "comes before the flags"),
        (["quickstart", "--checkpoint", "/nowhere"], "/nowhere does not exist"),
        (["quickstart", "--checkpoint", "x", "--model.width", "8"], "leave out --model flags"),
        (["quickstart", "--torch-python", "/no/python"], "/no/python"),
    ],
)
def test_faults_are_named_before_anything_is_timed(argv, fault):
    with pytest.raises(ConfigError, match=fault):
        benchmark.main(argv)


def test_rows_have_milliseconds_and_pytorch_is_compiled_where_that_is_said(monkeypatch):
    columns = cases._columns(Timing(0.002, 0.001, 0.003, 0.5, 3 * 2**20, 1))
    assert columns == {"ms": 2.0, "low ms": 1.0, "high ms": 3.0, "first call s": 0.5, "peak MiB": 3.0}
    three = cases.Plan(1, 1, "python").both({"kind": "x"})
    assert [contender.spec.get("compile") for contender in three.values()] == [None, False, True]
    assert [contender.eager for contender in three.values()] == [False, True, False]


def test_every_compilation_is_timed_once_a_round(tiny, monkeypatch):
    asked = []

    def alternate(contenders, **options):
        asked.append((list(contenders), options))
        return {name: Timing(2.0, 1.0, 3.0, 0.5, 2**20, 1) for name in contenders}

    monkeypatch.setattr(cases, "alternate", alternate)
    rows, _ = cases.compilation(tiny[0], cases.Plan(3, 9, ""), (2, 5))
    assert asked == [(["scan 2", "scan 5", "unroll 2", "unroll 5"], {"rounds": 3, "calls": 1})]
    assert rows[1] == {"layers": "scan", "depth": 5, "s": 2.0, "low s": 1.0, "high s": 3.0}


def test_text_outside_the_model_is_refused_before_its_perplexity(tiny):
    config, params, _ = tiny
    other = config.replace(model=config.model.replace(vocab_size=70))
    with pytest.raises(ConfigError, match="outside the vocabulary of 70 ids"):
        benchmark.perplexity_note(other, params, "")


def test_resident_memory_is_what_the_system_says():
    import psutil

    assert worker.current_rss() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


@pytest.mark.parametrize(
    ("policy", "narrow"), [("float32", False), ("bfloat16", True), ("bfloat16_wide_streams", True)]
)
def test_pytorch_computes_in_the_dtype_of_the_policy(policy, narrow):
    with torch_worker.autocast({"policy": policy}):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if narrow else torch.float32)
