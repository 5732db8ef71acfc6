import json

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm.environments import SandboxUnavailable, monty
from mhc_jax.rlm.models import Reply
from mhc_jax.rlm.tasks import Task
from train import rlm_bench
from train.measure import answers
from train.tests.tiny import tiny_export


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The folder of a model that has 32 tokens."""
    return str(tiny_export(tmp_path_factory.mktemp("tiny"))[-1])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_scripted_model_scores_by_length(here, capsys):
    shown = ["--picture", "scores.png"]
    rlm_bench.main(["--tasks", "needles", "pairs", "--lengths", "3000", "400000", "--examples", "1", *shown])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert rows[0][:5] == ["task", "length", "alone", "scaffold", "answered"]
    scores = {(row[0], row[1]): row[2:5] for row in rows[2:]}
    assert scores["needles", "3,000"] == scores["pairs", "3,000"] == scores["all", "3,000"] == ["1", "1", "1"]
    assert scores["pairs", "400,000"] == ["0", "1", "1"]
    assert float(scores["all", "400,000"][0]) < 0.5
    assert max(map(len, out.splitlines())) <= 80
    assert "did not fit" not in out
    assert (here / "scores.png").stat().st_size > 10_000


def test_json_holds_each_answer_and_is_the_same_twice(here, capsys):
    flags = ["--tasks", "count", "--lengths", "2000", "--examples", "2", "--seed", "5", "--json"]
    found = []
    for _ in range(2):
        rlm_bench.main(flags)
        found.append([{**line, "seconds": 0} for line in lines(capsys)])
    assert found[0] == found[1]
    assert [(line["seed"], line["mode"], line["score"]) for line in found[0]] == [
        (5, "alone", 1.0),
        (5, "scaffold", 1.0),
        (6, "alone", 1.0),
        (6, "scaffold", 1.0),
    ]
    assert all(line["answer"] == line["truth"][0] for line in found[0])
    assert not [*here.iterdir()]


def test_a_run_that_has_too_few_tokens_for_a_question_has_no_score(here, export, capsys):
    flags = ["--run", export, "--tasks", "needle", "--lengths", "1000", "--examples", "1", "--tokens", "4"]
    rlm_bench.main([*flags, "--json"])
    assert [(line["status"], line["score"], line["calls"]) for line in lines(capsys)] == [("too long", 0.0, 0)] * 2
    rlm_bench.main([*flags, "--picture", "scores.png"])
    title, _, row, *said = capsys.readouterr().out.splitlines()
    cells = dict(zip(*(map(str.strip, line.strip("|").split("|")) for line in (title, row)), strict=True))
    assert (cells["alone"], cells["scaffold"], cells["answered"]) == ("", "", "0")
    for mode in ("alone", "scaffold"):
        assert any(line.startswith(f"{mode}: 1 of 1 prompts did not fit into the model's window") for line in said)
    assert max(map(len, said)) <= 80


def test_a_data_set_from_disk(here, export, capsys):
    (here / "set.jsonl").write_text('{"context": "abc", "question": "?", "answer": ["x"]}\n' * 3)
    rlm_bench.main(["--run", export, "--data", "set.jsonl", "--examples", "2", "--tokens", "4", "--json"])
    found = lines(capsys)
    assert [(line["task"], line["length"], line["seed"], line["mode"]) for line in found[::2]] == [
        ("set", 4, 0, "alone"),
        ("set", 4, 1, "alone"),
    ]
    assert found[0]["calls"] == 1
    assert isinstance(found[0]["answer"], str)


def test_the_code_base_that_is_asked_about(here, capsys):
    (here / "one.py").write_text("def only():\n    pass\n")
    rlm_bench.main(["--tasks", "code", "--source", ".", "--lengths", "10", "--examples", "3", "--json"])
    assert {*(line["truth"][0] for line in lines(capsys))} <= {"one.py", "1"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tasks", "needle", "haystack"], "--tasks: unknown task 'haystack'; known: by_date"),
        (["--tasks", "needel"], "did you mean 'needle'?"),
        (["--model", "m"], "unknown flag --model: use --run"),
        (["--lengths", "0"], "--lengths must be"),
        (["--examples", "0"], "--examples must be at least 1"),
        (["--tokens", "0"], "--tokens must be at least 1"),
        (["--limits.max-iterations", "0"], "--limits.max-iterations must be at least 1"),
        (["--environment", "local"], "--environment must be one of monty"),
        (["--run", "nowhere"], "nowhere does not exist"),
        (["--data", "x.jsonl"], "scripted model; give --run RUN"),
        (["--data", "x.jsonl", "--tasks", "needle"], "exclude each other"),
        (["--run", "m", "--data", "x.jsonl"], "neither a file nor a folder"),
        (["--source", "nowhere", "--tasks", "code"], "no Python files"),
        (["--picture", "."], "--picture . is a folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, flags, words, capsys):
    from train.terminal import cli

    with pytest.raises(ConfigError) as caught:
        rlm_bench.main(flags)
    assert words in cli.message(caught.value)
    assert not [*here.iterdir()]
    assert not capsys.readouterr().out


def test_tokens_that_leave_no_room(here, export):
    with pytest.raises(ConfigError, match="--tokens 32 leaves no room for a prompt in the 32 tokens"):
        rlm_bench.main(["--run", export, "--tokens", "32"])


def test_without_a_sandbox_nothing_is_asked(here, monkeypatch):
    monkeypatch.setattr(monty, "monty", None)
    with pytest.raises(SandboxUnavailable, match="pip install"):
        rlm_bench.main(["--tasks", "needle"])
    assert not [*here.iterdir()]


class Narrow:
    """A model of 100 tokens, one for a character."""

    context_length, max_completion_tokens = 100, 10

    def __init__(self):
        self.seen = []

    def __call__(self, messages):
        self.seen.append(messages[0]["content"])
        return Reply("")

    def count_tokens(self, text):
        assert len(text) < 3000  # a long context is not counted whole
        return len(text)


def test_alone_a_model_reads_the_beginning_that_fits():
    model, task = Narrow(), Task("kind", "0123456789" * 100_000, "q" * 18, ("x",), "label")
    assert answers.alone(model, task) == ("", "silent", 1, 90)
    assert model.seen == [task.context[:70] + "\n\n" + task.question]
    short = Task("kind", "short", "q", ("x",), "label")
    assert answers.prompt(model, short)[0]["content"] == "short\n\nq"
    assert answers.prompt(model, Task("kind", "", "q" * 100, ("x",), "label")) is None
