"""The benchmark of decoding by position: what it reads, what it refuses and what it reports."""

import json

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models import nanogpt
from mhc_jax.nn.mixers import AttentionConfig
from train.benchmark import __main__ as benchmark
from train.benchmark import inference
from train.benchmark.inference import Plan, Stream

SIZES = {"vocab_size": 17, "max_len": 80, "width": 8, "layers": 1}
PLAN = Plan(prompt=5, tokens=70, piece=3, bucket=32)


@pytest.fixture(scope="module")
def attention():
    model = nanogpt(mixer=AttentionConfig(heads=2), **SIZES)
    return model, mhc_jax.init(model, jax.random.key(0))


@pytest.fixture(scope="module")
def growing(attention):
    return Stream(*attention, grows=True)


def test_a_plan_covers_every_position_once():
    assert PLAN.pieces == [3, 2]
    assert PLAN.buckets == [(5, 32), (32, 64), (64, 75)]
    assert Plan(64, 64, 64, 32).buckets == [(64, 96), (96, 128)]
    with pytest.raises(ConfigError, match="bucket must be at least 1"):
        Plan(1, 1, 1, 0)


@pytest.mark.slow
def test_a_growing_cache_gives_the_logits_of_a_whole_pass(attention, growing):
    text = jax.random.randint(jax.random.key(1), (1, 75), 0, 17)
    assert inference.off_a_whole_pass(growing, *attention, text, PLAN) < 1e-5
    assert (growing.position, growing.capacity) == (75, 80)
    keys_and_values = 2 * 8 * 4
    assert growing.state_bytes == 80 * keys_and_values
    growing.restart()
    assert growing.state_bytes == 32 * keys_and_values


@pytest.mark.slow
def test_what_disagrees_with_a_whole_pass_is_seen(attention, growing, monkeypatch):
    read = Stream.read

    def forgetful(stream, tokens_BT):
        if stream.position == 40:
            stream._cache |= {"state": jax.tree.map(np.zeros_like, stream._cache["state"])}
        return read(stream, tokens_BT)

    monkeypatch.setattr(Stream, "read", forgetful)
    text = jax.random.randint(jax.random.key(1), (1, 75), 0, 17)
    assert inference.off_a_whole_pass(growing, *attention, text, PLAN) > 1e-3


def test_rows_and_speeds_are_those_of_the_seconds():
    seconds = {"a": [1e-3] * 27 + [3e-3] * 43}
    first, second, third = inference.rows(seconds, {"a": [(1024, 512), (2048, None), (2048, 0)]}, PLAN)
    assert first == {
        "model": "a",
        "positions": "5-31",
        "median": pytest.approx(1),
        "mean": pytest.approx(1),
        "p99": pytest.approx(1),
        "state": 1.0,
        "peak": 1.5,
    }
    assert (second["positions"], second["mean"], second["peak"]) == ("32-63", pytest.approx(3), None)
    assert third["positions"] == "64-74"
    assert inference.speeds(seconds, PLAN) == "Tokens/s from position 32, 64 on: a: 333, 333."
    axes, state = inference.draw([first, second, third]).axes
    assert axes.lines[0].get_xydata().tolist() == [[18, 1e-3], [47.5, 3e-3], [69, 3e-3]]
    assert state.lines[0].get_ydata().tolist() == [1024, 2048, 2048]


@pytest.mark.slow
def test_command_times_every_model_and_leaves_out_what_disagrees(tmp_path, capsys, monkeypatch):
    flags = ["--data.tokenizer", "bytes", "--model.width", "8", "--model.layers", "1"]
    sizes = "--model.width 8 --model.layers 1"
    others = [f"attention=nanogpt --model.mixer.heads 2 {sizes}"]
    plan = ["--prompt", "4", "--tokens", "40", "--piece", "4", "--bucket", "32"]
    off = inference.off_a_whole_pass

    def wrong_where_it_grows(stream, *rest):
        return 1.0 if stream._grows else off(stream, *rest)

    monkeypatch.setattr(inference, "off_a_whole_pass", wrong_where_it_grows)
    benchmark.main(["quickstart", *flags, "--what", "inference", "--others", *others, *plan, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80 + len(str(tmp_path))
    found = json.loads((tmp_path / "inference-quickstart.json").read_text())
    assert [row["model"] for row in found["rows"]] == ["quickstart", "attention"] * 2
    assert [row["positions"] for row in found["rows"]] == ["4-31"] * 2 + ["32-43"] * 2
    assert all(0 < row["median"] <= row["p99"] for row in found["rows"])
    assert found["jax"] == jax.__version__
    assert "attention, growing is not timed" in found["notes"][-1]
    assert (tmp_path / "inference-quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_faults_are_named_before_anything_is_compiled():
    quick = ["quickstart", "--what", "inference", "--out", ""]
    for more, fault in (
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--others", "quickstart"], "quickstart is there twice; call one of them 'LABEL=quickstart'"),
        (["--others", "nanogptt"], "did you mean 'nanogpt'"),
        (["--others", "b=nanogpt --model.widht 3"], "b: .*did you mean --model.width"),
        (["--others", "nanogpt 'x"], "NAME cannot be split into words"),
    ):
        with pytest.raises(ConfigError, match=fault):
            benchmark.main([*quick, *more])
