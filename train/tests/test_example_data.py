"""A kind of data from outside the repository: trained, resumed, scored and tabulated by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest

import train.__main__ as command
from mhc_jax import registry
from mhc_jax.config import ConfigError
from train import compare, evaluate, sample
from train.config import recorded
from train.data.errors import DataError
from train.loop.resolve import resolve
from train.loop.run import run
from train.storage.folder import read_metrics
from train.tests.runs import measured

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def task():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import delayed_copy

        yield delayed_copy


@pytest.fixture(scope="module")
def small(task):
    """Copies over two places, of five tokens."""
    config = task.delayed_copy()
    return config.replace(
        model=config.model.replace(width=16),
        data=config.data.replace(tokens=5, delay=2, seq_len=12, batch_size=16, eval_count=2, epoch_steps=150),
        optim=config.optim.replace(lr=3e-2, schedule="constant"),
        train=config.train.replace(steps=0, epochs=1, eval_every=8),
        log=config.log.replace(every=50, progress=False),
    )


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task") / "run"
    return folder, run(small.replace(run_dir=str(folder)))


def test_the_share_of_its_targets(small):
    assert small.data.load().targets_share() == pytest.approx(10 / 12)  # of 12 places the first 2 have none


@pytest.mark.slow
def test_it_learns_and_reports_its_error_rate(done):
    folder, result = done
    assert result.summary["steps"] == 150  # an epoch
    errors = [line["val_error"] for line in read_metrics(folder / "metrics.jsonl") if "val_error" in line]
    assert errors[0] > 0.3
    assert result.summary["val_error"] == errors[-1] < 0.05
    assert not {"val_ppl", "val_bpb", "unigram_ppl"} & result.summary.keys()
    assert not (folder / "sample.txt").exists()


@pytest.mark.slow
def test_it_resumes_bitwise(small, done, tmp_path):
    parts = small.replace(run_dir=str(tmp_path / "parts"))
    run(parts.replace(train=parts.train.replace(steps=83)))
    result = run(parts.replace(train=parts.train.replace(steps=150, resume=True)))
    assert result.summary["val_loss"] == done[1].summary["val_loss"]
    whole, again = measured(done[0])[-1], measured(tmp_path / "parts")[-1]
    assert whole == again


@pytest.mark.slow
def test_the_commands_score_and_tabulate_it(done, capsys):
    folder, result = done
    evaluate.main([str(folder), "--which", "last", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(result.summary["val_loss"], rel=1e-6)
    assert found["error"] == result.summary["val_error"]
    assert found["tokens"] == 2 * 16 * (12 - 2)
    evaluate.main([str(folder), "--which", "last", "--split", "test", "--json"])
    assert json.loads(capsys.readouterr().out)["loss"] != found["loss"]
    compare.main([str(folder), "--picture", str(folder / "curves.png")])
    printed = capsys.readouterr().out
    assert "| error |" in " ".join(printed.split())
    assert "perplexity" not in printed
    assert "ppl" not in printed
    with pytest.raises(ConfigError, match="is not text"):
        sample.main([str(folder)])


def test_a_kind_is_imported_by_any_command(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"data": {"kind": "counting_sheep"}}))
    with pytest.raises(
        ConfigError, match="unknown data 'counting_sheep'.*; if it is defined elsewhere, add --import MODULE"
    ):
        evaluate.main([str(tmp_path)])
    (tmp_path / "sheep.py").write_text(
        "import dataclasses\nfrom mhc_jax.registry import register\nfrom train.data.generated import GeneratedConfig\n"
        "@register('data', 'counting_sheep')\n@dataclasses.dataclass(frozen=True)\n"
        "class Sheep(GeneratedConfig):\n    flock: int = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="--import needs a value"):
        evaluate.main([str(tmp_path), "--import"])
    with pytest.raises(ConfigError, match="--import goats: No module named 'goats'"):
        evaluate.main(["--import", "goats", str(tmp_path)])
    for spelled in (["--import", "sheep"], ["--import=sheep"]):
        with pytest.raises(ConfigError, match="config.json: model: vocab_size must be given"):
            evaluate.main([str(tmp_path), *spelled])
        assert recorded(tmp_path / "config.json").data.flock == 3
    registry._REGISTRY["data"].pop("counting_sheep")


def test_what_is_next_imports_it_too(small, task, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("train.loop.run.run", lambda config, **_: None)
    command.main(["delayed_copy", "--import", "delayed_copy", "--run-dir", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    commands = lines[lines.index("next:") + 1 :]
    assert [line for line in commands if not line.endswith("--import delayed_copy")] == []
    assert len(commands) == 3
    assert "train.sample" not in " ".join(commands)


def test_its_help_has_its_own_flags_alone(task, capsys):
    command.main(["delayed_copy", "--import", "delayed_copy", "--help"])
    printed = capsys.readouterr().out
    assert "--data.seq-len" in printed
    assert "--data.source" not in printed


def test_batches_depend_on_split_seed_and_number_alone(small):
    data = small.data.load()
    first, second = (next(batches) for batches in [data.train()] * 2)
    assert not np.array_equal(first["inputs"], second["inputs"])
    again = data.train()
    assert np.array_equal(next(again)["inputs"], first["inputs"])
    position = again.get_state()
    following = next(again)
    assert np.array_equal(following["inputs"], second["inputs"])
    again.set_state(position)
    assert np.array_equal(next(again)["inputs"], second["inputs"])
    halves = [next(data.train(host, 2)) for host in (0, 1)]
    for name in first:
        assert np.array_equal(np.concatenate([half[name] for half in halves]), first[name])
    splits = [next(iter(data.evaluation(split)))["inputs"] for split in ("train", "validation", "test")]
    assert np.array_equal(splits[0], first["inputs"])
    assert not any(np.array_equal(splits[0], other) for other in splits[1:])
    other = small.data.replace(seed=1).load()
    assert other.fingerprint != data.fingerprint
    assert not np.array_equal(next(other.train())["inputs"], first["inputs"])


def drawing(small, inputs=None, targets=None):
    """The task of eight tokens with other draws."""

    class Crooked(type(small.data)):
        def draw(self, random, rows):
            given = {"inputs": inputs, "targets": targets}
            return super().draw(random, rows) | {name: x for name, x in given.items() if x is not None}

    return Crooked(seq_len=4, batch_size=2)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"inputs": np.zeros((2, 5), int)}, r"drew .*'inputs': \(2, 5\).*; it must draw arrays of shapes .*\(2, 4\)"),
        ({"inputs": np.full((2, 4), 8)}, r"drew 8 among its inputs, outside 0\.\.7"),
        ({"inputs": np.full((2, 4), -1)}, r"drew -1 among its inputs"),
        ({"targets": np.full((2, 4), -4)}, r"drew -4 among its targets"),
        ({"targets": np.full((2, 4), 2**32)}, r"drew 4294967296 among its targets"),
        ({"targets": np.full((2, 4), 0.9)}, r"drew targets of dtype float64; they must be integers"),
        ({"targets": np.full((2, 4), -100)}, "drew a batch without a target"),
    ],
)
def test_a_wrong_draw_is_named(small, changes, fault):
    with pytest.raises(DataError, match=f"^data 'delayed_copy' {fault}"):
        drawing(small, **changes).load()


def test_draws_from_elsewhere_and_no_arrays_are_named(small):
    class Restless(type(small.data)):
        def draw(self, random, rows):
            return super().draw(np.random.default_rng(), rows)

    class Listless(type(small.data)):
        def draw(self, random, rows):
            return [0, 1]

    with pytest.raises(DataError, match="draws other rows from the same generator"):
        Restless(seq_len=12, batch_size=16).load()
    with pytest.raises(DataError, match="drew list; it must draw arrays"):
        Listless(seq_len=12, batch_size=16).load()


def test_a_vocabulary_too_small_is_named(small):
    with pytest.raises(ConfigError, match=r"--model.vocab-size 4 is smaller than the 5 tokens of the data"):
        resolve(small.replace(model=small.model.replace(vocab_size=4)))
    with pytest.raises(DataError, match="vocabulary of 4 is smaller than the 5 tokens"):
        small.data.load().check(4)


@pytest.mark.parametrize("delay", [0, -1, 12])
def test_a_delay_that_leaves_no_task_is_refused(small, delay):
    with pytest.raises(ConfigError, match="delay"):
        small.data.replace(delay=delay).validate()
