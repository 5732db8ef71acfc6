"""Questions about passages: their answers are true, the same twice, and of validation never seen in training."""

import json
import re

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from train import prepare_rlm
from train.data import synthetic

TEXT = "".join(f"Line {i} of a small text, {'abcdefg'[i % 7]} as ever.\n" for i in range(300))


def read(folder):
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "validation")
    }


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A function that writes records about a text, and reads them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text(TEXT, encoding="utf-8")

    def prepare(out, *flags):
        argv = ["--out", out, "--source", "notes.txt", "--count", "90", "--validation", "12", "--characters", "120"]
        prepare_rlm.main([*argv, *flags])
        return read(tmp_path / out)

    return prepare


def is_true(record):
    """Whether the response is what a reader of the context finds."""
    context, instruction, response = (record[name] for name in ("context", "instruction", "response"))
    lines = context.split("\n")
    if found := re.match(r"Print lines (\d+) to (\d+) ", instruction):
        first, last = map(int, found.groups())
        return 1 <= first <= last <= len(lines) and response == "\n".join(lines[first - 1 : last])
    if found := re.match(r"Print text\[(\d+):(\d+)\]", instruction):
        return response.strip() and response == context[int(found[1]) : int(found[2])]
    if found := re.match(r'On which lines, counted from 1, does "(.+)" occur\?$', instruction):
        return response == ", ".join(str(i + 1) for i, line in enumerate(lines) if found[1] in line) != ""
    found = re.match(r"What is the (.+) of (\w+)\?$", instruction)
    return found and context.count(found[2]) == 1 and f"The {found[1]} of {found[2]} is {response}.\n" in f"{context}\n"


def test_every_response_is_true_and_every_kind_is_there(prepared):
    found = prepared("data")
    assert [len(found[split]) for split in ("train", "validation")] == [90, 12]
    for split in found.values():
        assert [record for record in split if not is_true(record)] == []
        kinds = [record["task_type"] for record in split]
        assert {kinds.count(kind) for kind in synthetic.KINDS} == {len(split) // 3}
    assert len({record["instruction"] for record in found["train"]}) > 60


def test_the_same_seed_writes_the_same_and_another_one_does_not(prepared):
    assert prepared("a") == prepared("b") != prepared("c", "--seed", "1")


def test_no_context_of_validation_is_one_of_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The end of the text repeats its beginning.
    lines = TEXT.splitlines(keepends=True)
    (tmp_path / "notes.txt").write_text("".join([*lines, *lines[:9], "One more line,\n", "and a last one.\n"]))
    argv = ["--out", "data", "--source", "notes.txt", "--characters", "20", "--validation-fraction", "0.035"]
    prepare_rlm.main([*argv, "--count", "600", "--validation", "30"])
    found = read(tmp_path / "data")
    passages = [
        {re.sub(r"The [a-z ]+ of [A-Z]\w{5} is \d{5}\.\n?", "", record["context"]).strip() for record in found[split]}
        for split in ("train", "validation")
    ]
    assert passages[1]
    assert not passages[0] & passages[1]


def test_passages_are_whole_lines():
    found = synthetic.passages(["one\n\ntwo\nthree\nfour", "a line longer than the size\nand another"], 6)
    assert found == ["one\ntwo", "three\nfour", "a line longer than the size\nand another"]


def test_an_invented_name_is_not_in_the_text():
    name = synthetic.invented("", np.random.default_rng(0))
    assert synthetic.invented(name, np.random.default_rng(0)) != name


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--count", "0"], "count must be at least 1, got 0"),
        (["--characters", "5"], "characters must be at least 20, got 5"),
        (["--characters", "100000"], "gives no train context of 100000 characters"),
        (["--source", "nothing.txt"], r"^--source nothing.txt: no such file or folder"),
    ],
)
def test_bad_input_leaves_nothing(prepared, tmp_path, flags, fault):
    with pytest.raises(ConfigError, match=fault):
        prepared("data", *flags)
    assert not (tmp_path / "data").exists()


def test_files_are_never_overwritten(prepared):
    prepared("data")
    with pytest.raises(ConfigError, match="--out data already holds train.jsonl and validation.jsonl"):
        prepared("data")
