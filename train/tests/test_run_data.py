"""Whole runs on token shards and on characters: trained, resumed, and used from their own record."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm
from train import evaluate, export, sample
from train.config import OptimConfig, TrainConfig
from train.data import load_corpus, load_tokenizer
from train.data.config import CorpusConfig
from train.data.fineweb import shard_name
from train.data.shards import write_shard
from train.devices.sharding import make_mesh
from train.loop.introduction import introduce
from train.loop.resolve import resolve
from train.loop.run import run
from train.objectives.cross_entropy import CrossEntropyConfig
from train.storage.folder import read_metrics
from train.storage.restore import load_run
from train.tests.runs import tiny_run


@pytest.fixture
def on_shards(tmp_path):
    """A run on three shards whose model has a vocabulary of 50,304, as the original's."""
    config = tiny_run(tmp_path)
    with open(config.data.source) as file:
        ids = np.array([50256, *load_tokenizer("gpt2").encode(file.read())], np.uint16)
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate(np.split(ids, [500, 1500])):
        write_shard(folder / shard_name("train" if number else "validation", number), part)
    data = CorpusConfig(source="fineweb10b", path=str(folder), seq_len=16, batch_size=4, windows="random")
    return config.replace(
        model=mhc_ssm("baseline", vocab_size=50_304, max_len=None, width=8, layers=1),
        data=data.replace(cache_dir=str(tmp_path / "cache")),
        optim=OptimConfig(lr=3e-2, warmup_steps=0, schedule="constant"),
        objective=CrossEntropyConfig(chunk=8),
        train=TrainConfig(steps=8),
    )


def test_a_warm_up_as_long_as_the_run_is_pointed_out(tmp_path, capsys):
    config, data = resolve(tiny_run(tmp_path)), SimpleNamespace(introduction=lambda baselines: "data")
    for steps, warned in ((5, True), (6, False)):
        introduce(config, data, make_mesh(config.mesh), 1, steps, {})
        assert ("--optim.warmup-steps 5 covers all 5 steps of the run" in capsys.readouterr().out) == warned


def test_interpreted_kernels_are_pointed_out(tmp_path, capsys):
    config, data = resolve(tiny_run(tmp_path)), SimpleNamespace(introduction=lambda baselines: "data")
    for way, warned in (("xla", False), ("pallas", True)):
        objective = config.objective.replace(implementation=way)
        introduce(config.replace(objective=objective), data, make_mesh(config.mesh), 1, 6, {})
        said = "interpreted on a CPU, which is slow: --objective.implementation pallas;" in capsys.readouterr().out
        assert said == warned


@pytest.mark.parametrize(
    ("changes", "warned"), [({}, True), ({"decay_steps": 6}, False), ({"schedule": "constant"}, False)]
)
def test_a_decay_that_ends_with_the_warm_up_is_pointed_out(changes, warned, tmp_path, capsys):
    config, data = resolve(tiny_run(tmp_path)), SimpleNamespace(introduction=lambda baselines: "data")
    optim = config.optim.replace(**({"decay_steps": 5} | changes))
    introduce(config.replace(optim=optim), data, make_mesh(config.mesh), 1, 10, {})
    assert ("--optim.decay-steps 5 count the 5 of the warm-up" in capsys.readouterr().out) == warned


@pytest.mark.slow
def test_run_on_shards(on_shards, tmp_path, capsys):
    whole = run(on_shards).summary
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 1
    evaluate.main([str(tmp_path / "run"), "--which", "last", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(whole["val_loss"], rel=1e-6)
    assert found["bpb"] == pytest.approx(whole["val_bpb"], rel=1e-6)
    assert whole["unigram_ppl"] < 1000

    parts = on_shards.replace(run_dir=str(tmp_path / "parts"))
    run(parts.replace(train=parts.train.replace(steps=3)))
    resumed = run(parts.replace(train=parts.train.replace(resume=True))).summary
    assert resumed["val_loss"] == whole["val_loss"]


def test_vocabulary_of_the_model_and_of_the_shards(on_shards):
    assert resolve(on_shards).model.vocab_size == 50_304
    follow = on_shards.replace(model=on_shards.model.replace(vocab_size=None))
    assert resolve(follow).model.vocab_size == 50_257
    with pytest.raises(ConfigError, match=r"--model.vocab-size 50256 is smaller than the 50257 tokens of"):
        resolve(on_shards.replace(model=on_shards.model.replace(vocab_size=50_256)))


@pytest.mark.slow
def test_only_the_splits_of_training_are_encoded(tmp_path, monkeypatch, capsys):
    config, folder = tiny_run(tmp_path), tmp_path / "splits"
    folder.mkdir()
    text = (tmp_path / "corpus.txt").read_text()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(text)
    config = config.replace(data=config.data.replace(source=str(folder)), train=config.train.replace(steps=2))

    def encoded():
        return sorted(file.stem.partition("-")[2] for file in (tmp_path / "cache").glob("*.npy"))

    run(config)
    assert encoded() == ["train", "validation"]
    evaluate.main([str(tmp_path / "run"), "--split", "test", "--json"])
    assert encoded() == ["test", "train", "validation"]

    # A run whose record counts the test split, as earlier versions recorded it, goes on with the same text only.
    earlier = config.replace(run_dir=str(tmp_path / "earlier"))
    with monkeypatch.context() as patched:
        both = functools.partial(load_corpus, also=("test",))
        patched.setattr("train.data.text_data.load_corpus", both)
        run(earlier)
    further = earlier.replace(train=config.train.replace(steps=4, resume=True))
    (folder / "test.txt").write_text("another line\n" + text)
    with pytest.raises(ConfigError, match="is not what the run began with"):
        run(further)
    (folder / "test.txt").write_text(text)
    assert run(further).summary["steps"] == 4
    assert "resumed" in capsys.readouterr().out


@pytest.mark.slow
def test_run_on_characters_needs_its_text_no_more(tmp_path, capsys):
    config = tiny_run(tmp_path)
    config = config.replace(
        data=config.data.replace(tokenizer="chars", validation_fraction=0.1, sample_tokens=8),
        train=config.train.replace(steps=40),
    )
    text = (tmp_path / "corpus.txt").read_text()
    summary = run(config).summary
    (tmp_path / "corpus.txt").rename(tmp_path / "elsewhere.txt")

    kept, params = load_run(tmp_path / "run", "last")
    assert kept.data.tokenizer == "chars:" + "".join(sorted(set(text)))
    assert kept.model.vocab_size == len(set(text))
    export.export(kept, params, tmp_path / "exported")
    assert "compiling and drawing a text sample" in capsys.readouterr().err.splitlines()
    for folder in ("run", "exported"):
        sample.main([str(tmp_path / folder), "--prompt", "the ", "--tokens", "8"])
        printed = capsys.readouterr().out
        assert len(printed.rstrip("\n")) <= 12
        assert set(printed) <= set(text)
    with pytest.raises(ConfigError, match="'Q' is not among the"):
        sample.main([str(tmp_path / "run"), "--prompt", "Q"])

    # The same text under another name has the same characters, and scores the same.
    elsewhere = ["--data.source", str(tmp_path / "elsewhere.txt"), "--json"]
    evaluate.main([str(tmp_path / "run"), "--which", "last", *elsewhere])
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    (tmp_path / "elsewhere.txt").write_text(text.replace("s", "Q"))
    with pytest.raises(ConfigError, match="'Q' is not among the"):
        evaluate.main([str(tmp_path / "run"), *elsewhere])
