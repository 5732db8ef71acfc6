"""Instructions with responses: what is read, how it is packed, and what counts."""

import itertools
import json
import math
import re

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm.session import prompt_of
from train.config import RunConfig
from train.data import DataError, InstructionsConfig, load_tokenizer
from train.data.kind import IGNORE
from train.data.records import PackedRecords, Record, encode, starts_of_windows
from train.loop import named
from train.terminal.flags import flags_of, parts_of
from train.tests.documents import ROOT

BYTES = load_tokenizer("bytes")


def line(i, context=None):
    return {
        "context": f"Shelf {i} holds {i * i} jars." if context is None else context,
        "instruction": f"How many jars are on shelf {i}?",
        "response": f"{i * i} jars",
    }


def write(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    """Forty records in one file."""
    file = write(tmp_path / "records.jsonl", [line(i) for i in range(40)])
    return InstructionsConfig(
        source=str(file), tokenizer="bytes", seq_len=400, batch_size=4, cache_dir=str(tmp_path / "cache")
    )


def rows_of(batches):
    return [{name: x[row] for name, x in batch.items()} for batch in batches for row in range(len(batch["inputs"]))]


def records_in(window):
    """The prompt and the response of each record of a window, read back from its arrays."""
    for number in range(int(window["segments"].max()) + 1):
        (places,) = np.nonzero(window["segments"] == number)
        targets = window["targets"][places]
        (counted,) = np.nonzero(targets != IGNORE)
        if len(counted):
            inputs = window["inputs"][places]
            np.testing.assert_array_equal(window["positions"][places], np.arange(len(places)))
            np.testing.assert_array_equal(counted, np.arange(counted[0], len(places)))
            np.testing.assert_array_equal(targets[counted[:-1]], inputs[counted[0] + 1 :])
            yield BYTES.decode(inputs[: counted[0] + 1].tolist()), targets[counted].tolist()


def test_every_record_is_there_and_only_its_response_counts(config):
    data = config.load()
    found = [
        item
        for split in ("train", "validation")
        for window in rows_of(data.evaluation(split))
        for item in records_in(window)
    ]
    wanted = [
        (prompt_of(x["context"], x["instruction"]), [*BYTES.encode(x["response"]), BYTES.eos_id])
        for x in map(line, range(40))
    ]
    assert sorted(found) == sorted(wanted)
    windows = rows_of(data.evaluation("train"))
    assert max(int(window["segments"].max()) for window in windows) > 1
    counted = np.array([window["targets"] != IGNORE for window in windows])
    assert data.targets_share() == pytest.approx(counted[counted.any(axis=1)].mean())  # the last batch is filled up


def test_windows_take_whole_records_while_they_fit():
    lengths = np.array([3, 4, 2, 7, 1, 1, 5, 2])
    starts = starts_of_windows(lengths, 7).tolist()
    assert starts == [0, 2, 3, 4, 7, 8]
    assert all(lengths[a:b].sum() <= 7 for a, b in itertools.pairwise(starts))


def test_a_record_of_just_the_room_and_one_of_one_token_more():
    record = Record("", "a", "b", "here: line 1")
    size = len(BYTES.encode(prompt_of("", "a"))) + 2
    (window,) = PackedRecords(encode([record], BYTES, size - 1, cut=False), size - 1)
    assert window["targets"].tolist()[-2:] == [ord("b"), BYTES.eos_id]
    with pytest.raises(
        DataError, match=rf"here: line 1 has {size} tokens, and a window holds {size - 1}; give a larger"
    ):
        encode([record], BYTES, size - 2, cut=False)


def test_a_context_that_is_too_long_is_cut_and_counted(config, tmp_path):
    long = line(3, context="naïve café " * 40)
    folder = write(tmp_path / "data" / "train.jsonl", [line(1), long, line(2)]).parent
    write(folder / "validation.jsonl", [line(4)])
    config = config.replace(source=str(folder), batch_size=1)
    with pytest.raises(
        DataError, match=r"train.jsonl: line 2 has 6\d\d tokens, and a window holds 401; .*--data.too-long"
    ):
        config.load()
    data = config.replace(too_long="cut").load()
    assert "1 contexts are cut" in data.introduction({})
    prompts = [item for window in rows_of(data.evaluation("train")) for item in records_in(window)]
    (cut,) = [(prompt, targets) for prompt, targets in prompts if "naïve" in prompt]
    assert cut[1] == [*BYTES.encode("9 jars"), BYTES.eos_id]
    assert cut[0].endswith(prompt_of("", long["instruction"]).split("\n", 1)[1])
    assert 390 <= len(BYTES.encode(cut[0])) + len(cut[1]) <= 401


def test_the_window_that_a_record_needs_without_its_context():
    record = Record("a context", "question", "answer", "here: line 1")
    with pytest.raises(DataError, match="here: line 1 is too long even without its context") as short:
        encode([record], BYTES, 60, cut=True)
    enough = int(re.search(r"and a window holds 61; give --data.seq-len (\d+) or more", str(short.value))[1])
    assert encode([record], BYTES, enough, cut=True).record["cut"] == 1
    with pytest.raises(DataError, match=f"give --data.seq-len {enough} or more"):
        encode([record], BYTES, enough - 1, cut=True)


def test_fields_have_other_names_and_a_context_may_be_missing(config, tmp_path):
    lines = [{"question": f"q{i}", "answer": f"a{i}", "context": None} for i in range(10)]
    file = write(tmp_path / "other.jsonl", lines)
    data = config.replace(source=str(file), instruction_field="question", response_field="answer", batch_size=1).load()
    prompts = [item for window in rows_of(data.evaluation("train")) for item in records_in(window)]
    answers = {prompt: BYTES.decode(targets[:-1]) for prompt, targets in prompts}
    assert len(answers) == 9
    assert answers.items() <= {prompt_of("", f"q{i}"): f"a{i}" for i in range(10)}.items()


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({"instruction": "i"}, 'line 1 has no string in the field "response", only .*--data.response-field'),
        ({"instruction": "i", "response": 3}, 'line 1 has no string in the field "response"'),
        ({"instruction": "i", "response": ""}, "line 1 has an empty response"),
        ({"context": 1, "instruction": "i", "response": "r"}, 'no string in the field "context"'),
        ([], 'line 1 has no string in the field "instruction"'),
    ],
)
def test_a_record_that_is_none_is_named(config, tmp_path, broken, fault):
    file = write(tmp_path / "broken.jsonl", [broken])
    with pytest.raises(DataError, match=fault):
        config.replace(source=str(file)).load()


def test_data_that_cannot_be(config, tmp_path):
    with pytest.raises(DataError, match="--data.source must name"):
        config.replace(source="").load()
    (tmp_path / "notes.txt").write_text("no records")
    with pytest.raises(DataError, match="records are lines of JSON, which notes.txt does not hold"):
        config.replace(source=str(tmp_path / "notes.txt")).load()
    with pytest.raises(DataError, match="--data.context-field contxt: no record has such a field"):
        config.replace(context_field="contxt").load()
    with pytest.raises(DataError, match="responses need an end token"):
        config.replace(tokenizer="chars:ab").load()
    with pytest.raises(DataError, match="at least two different contexts"):
        config.replace(source=str(write(tmp_path / "one.jsonl", [line(1)] * 5))).load()
    with pytest.raises(DataError, match="fewer than one batch of 64"):
        config.replace(batch_size=64).load().train()
    with pytest.raises(DataError, match="has no test split"):
        config.load().evaluation("test")
    with pytest.raises(ConfigError, match="validation_fraction must lie between 0 and 1"):
        config.replace(validation_fraction=1.0).validate()


def test_a_context_stays_in_one_split(config, tmp_path):
    lines = [line(i, context=f"context {i % 8}") for i in range(64)]
    config = config.replace(source=str(write(tmp_path / "shared.jsonl", lines)), validation_fraction=0.3, batch_size=1)
    data = config.load()
    contexts = [
        {prompt.split("\n")[1] for window in rows_of(data.evaluation(split)) for prompt, _ in records_in(window)}
        for split in ("train", "validation")
    ]
    assert [len(some) for some in contexts] == [5, 3]
    assert not contexts[0] & contexts[1]


def test_batches_go_on_from_a_position_on_any_number_of_hosts(config):
    config = config.replace(batch_size=2, seq_len=200)
    batches = config.load().train()
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = [next(batches) for _ in range(12)]
    again = config.load().train()
    again.set_state(state)
    halves = [config.load().train(host, 2) for host in range(2)]
    for half in halves:
        half.set_state(state)
    for batch in wanted:
        found, parts = next(again), [next(half) for half in halves]
        for name in batch:
            np.testing.assert_array_equal(batch[name], found[name])
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))


def test_scores_are_those_of_responses(config):
    data = config.load()
    windows = rows_of(data.evaluation("validation"))
    texts = [targets for window in windows for _, targets in records_in(window)]
    tokens, n_bytes = sum(map(len, texts)), sum(len(text) - 1 for text in texts)
    scores = data.scores("validation", {"loss": 2.0 * tokens, "tokens": tokens})
    assert scores == pytest.approx(
        {"loss": 2.0, "ppl": math.exp(2), "bpb": 2 / math.log(2) * tokens / n_bytes, "tokens": tokens}
    )


def test_other_records_have_another_fingerprint(config, tmp_path):
    other = write(tmp_path / "other.jsonl", [line(i) for i in range(39)] + [line(40)])
    same = write(tmp_path / "same.jsonl", [line(i) for i in range(40)])
    prints = [config.replace(source=str(x)).load().fingerprint for x in (config.source, other, same)]
    assert prints[0] == prints[2] != prints[1]


def test_the_page_about_them_names_flags_that_there_are():
    runs = named.load("rlm_base_original"), RunConfig(data=InstructionsConfig())
    known = {flag for run in runs for flag, _ in flags_of(run)} | {part.flag for run in runs for part in parts_of(run)}
    page = (ROOT / "docs" / "rlm_training.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"--[a-z][a-z-]*\.[a-z][a-z.-]*[a-z]", page))
    assert len(shown) > 25
    assert shown <= known
