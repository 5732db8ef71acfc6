"""Tasks with known truth: the same from a seed, right, and scored as they should be."""

import hashlib
import json
import random

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import RLM, Limits, tasks
from mhc_jax.rlm.tasks import Task, aggregate, codebase, task
from mhc_jax.rlm.tasks.scripted import WINDOW, Oracle, Reader

SOURCES = {
    "one.py": "import two\n\ndef first(x):\n    return second(x)\n\n\ndef second(y):\n    # first(y)\n    return y\n",
    "two.py": '"""Has def third(z): in it, and first(1)."""\n\nasync def third(\n    z,\n):\n    def inner():\n'
    "        return second(z)\n    return inner, two.first(z)\n\n\nclass A:\n    def method(self):\n        first(1)\n",
    "three.py": "VALUE = 1\n",
    "tests/four.py": "def hidden(): pass\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def solved(task):
    """The answer of the program of a task."""
    return RLM(Oracle(task), limits=Limits(max_iterations=2)).completion(task.context, task.question).answer


@pytest.mark.parametrize("kind", [kind for kind in tasks.KINDS if kind != "code"])
def test_the_program_of_a_task_finds_its_truth(kind):
    for length, seed in ((1, 0), (3000, 1), (3000, 2), (40_000, 3)):
        task = tasks.generate(kind, length, seed)
        assert task.score(solved(task)) == 1.0, (length, seed)
        assert length <= len(task.context) + 1000 <= length + 4000
        assert task.truth


def test_the_program_of_a_question_about_code_finds_its_truth(folder):
    asked = {}
    for seed in range(30):
        task = codebase.code(random.Random(seed), 10**6, folder)
        asked[task.question] = task
    assert {task.truth for task in asked.values()} >= {("one.py",), ("two.py",), ("2",), ("1",), ("first", "third")}
    assert not any("hidden" in question for question in asked)
    for task in asked.values():
        assert task.score(solved(task)) == 1.0, task.question


def test_questions_about_this_library():
    task = tasks.generate("code", 20_000, 0)
    assert task.context.startswith("# ==== file: ")
    assert task.truth


def test_a_folder_without_code(tmp_path):
    with pytest.raises(ConfigError, match="no Python files with functions"):
        codebase.code(random.Random(0), 10, tmp_path)


def test_tasks_are_the_same_from_a_seed_and_differ_between_seeds():
    for kind in tasks.KINDS:
        first, again, other = (tasks.generate(kind, 2000, seed) for seed in (0, 0, 1))
        assert first == again
        assert (first.question, first.context) != (other.question, other.context)
    task = tasks.generate("pairs", 5000, 7)
    digest = hashlib.sha256(f"{task.context}{task.question}{task.truth}".encode()).hexdigest()
    assert digest.startswith("6a7098e2137f5a93")  # on every machine and version of Python


@pytest.mark.parametrize(("kind", "length"), [("haystack", 10), ("count", 0)])
def test_tasks_that_cannot_be(kind, length):
    with pytest.raises(ConfigError, match="unknown task 'haystack'; known: by_date|at least 1 character"):
        tasks.generate(kind, length)


def test_truth_of_aggregation_by_hand():
    """Every question against a count of the lines as they stand in the context."""
    for seed in range(6):
        task = tasks.generate("count", 4000, seed)
        kind = task.question.split("about ")[1].split("?")[0]
        lines = [line.split(" | ") for line in task.context.splitlines()[1:]]
        assert task.truth == (str(sum(aggregate.OF_SENTENCE[line[2]] == kind for line in lines)),)


def test_sentences_belong_to_one_kind_each():
    assert len(aggregate.OF_SENTENCE) == sum(len(forms) * len(words) for forms, words in aggregate.KINDS.values())
    prompt = f"{aggregate.LABEL} ...\n2024-01-02 | 12345 | My fresh bread burnt in the oven again.\nwhat\na | b | c"
    assert aggregate.labels(prompt) == "food\nunknown"


@pytest.mark.parametrize(
    ("scoring", "truth", "answer", "score"),
    [
        ("label", ("food",), "Food.", 1.0),
        ("label", ("food",), "The label is: **food**", 1.0),
        ("label", ("food",), "not food", 0.0),
        ("label", ("B", "b)"), "(B)", 1.0),
        ("comparison", ("more common than",), "Answer: spam is more common than ham", 1.0),
        ("comparison", ("as common",), "not more common; they have the same frequency", 1.0),
        ("comparison", ("less common",), "more common", 0.0),
        ("comparison", ("less common",), "less", 0.0),
        ("date", ("2024-02-29",), "Answer: February 29, 2024.", 1.0),
        ("date", ("2024-02-29",), "02/29/2024", 1.0),
        ("date", ("2024-02-29",), "2024-02-28", 0.0),
        ("date", ("2024-02-29",), "in spring", 0.0),
        ("count", ("10",), "There are 10 of 60 lines: 10", 1.0),
        ("count", ("10",), "12", 0.75**2),
        ("count", ("1000",), "1,001 lines", 0.75),
        ("count", ("10",), "none", 0.0),
        ("count", ("10",), "9" * 400, pytest.approx(0.0)),
        ("f1", ("a", "b", "c"), "A, b", 0.8),
        ("f1", ("a",), "", 0.0),
        ("pairs", ("(1, 2)", "(3, 4)"), "(2,1); (5, 6)", 0.5),
        ("pairs", (), "none", 1.0),
        ("words", ("the red house", "blue"), "A red, red house!", 0.8),
        ("text", ("one two three four",), "one two four", pytest.approx(6 / 7)),
        ("text", ("one two",), "x " * 10**6, 0.0),
    ],
)
def test_scores(scoring, truth, answer, score):
    assert Task("kind", "", "", truth, scoring).score(answer) == score
    assert Task("kind", "", "", truth, scoring).score(None) == 0.0


def test_the_reader_knows_what_it_has_read():
    short, long = tasks.generate("needles", WINDOW // 2, 0), tasks.generate("needles", 40 * WINDOW, 0)
    assert short.score(Reader(short)([])) == 1.0
    assert long.score(Reader(long)([])) < 0.5
    missed = tasks.generate("needle", 40 * WINDOW, 0)
    assert Reader(missed)([]) == "It does not say."


RECORDS = {
    "oolong": (
        {"context_window_text": "c", "question": "q", "answer": "['7']", "answer_type": "ANSWER_TYPE.NUMERIC"},
        Task("set", "c", "q", ("7",), "count"),
    ),
    "oolong label": (
        {"context_window_text": "c", "question": "q", "answer": ["spam"], "answer_type": "ANSWER_TYPE.LABEL"},
        Task("set", "c", "q", ("spam",), "label"),
    ),
    "oolong comparison": (
        {"context_window_text": "c", "question": "q", "answer": "['x']", "answer_type": "ANSWER_TYPE.COMPARISON"},
        Task("set", "c", "q", ("x",), "comparison"),
    ),
    "oolong date": (
        {"context_window_text": "c", "question": "q", "answer": "[datetime.date(2024, 2, 9)]", "answer_type": "DATE"},
        Task("set", "c", "q", ("2024-02-09",), "date"),
    ),
    "oolong real": (
        {"context_window_text": "c", "question": "q", "answer": "Rex, Fido"},
        Task("set", "c", "q", ("Rex", " Fido"), "f1"),
    ),
    "oolong real number": (
        {"context_window_text": "c", "question": "q", "answer": "12"},
        Task("set", "c", "q", ("12",), "count"),
    ),
    "longbench": (
        {"context": "c", "input": "q", "answers": ["x", "y"], "length": 3},
        Task("set", "c", "q", ("x", "y"), "words"),
    ),
    "longbench 2": (
        {
            "context": "c",
            "question": "q",
            "choice_A": "1",
            "choice_B": "2",
            "choice_C": "3",
            "choice_D": "4",
            "answer": "C",
        },
        Task("set", "c", "q\n(A) 1\n(B) 2\n(C) 3\n(D) 4\nAnswer with the letter alone.", ("C",), "label"),
    ),
    "own": ({"context": "c", "question": "q", "answer": 5}, Task("set", "c", "q", ("5",), "words")),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_data_sets(tmp_path, name):
    record, expected = RECORDS[name]
    (tmp_path / "set.jsonl").write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n")
    assert [*tasks.read(tmp_path)] == [*tasks.read(tmp_path / "set.jsonl")] == [expected] * 2
    assert [*tasks.read(tmp_path, 1)] == [expected]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "set.jsonl, line 2: Expecting"),
        ('{"context_window_text": "c", "question": "q", "answer": "[1", "answer_type": "X"}', "line 2: .*never closed"),
        ("[]", "line 2: a line must be an object"),
        ('{"text": "x"}', "line 2: a record must have one of these sets of fields: .* it has text"),
        ('{"context": 1, "question": "q", "answer": "a"}', "'context' must be a text, not int"),
        ('{"context": "c", "input": "q", "answers": []}', "there is no answer"),
        ('{"context": "c", "question": "q", "choice_A": "1", "answer": "A"}', "the field 'choice_B' is missing"),
    ],
)
def test_records_that_are_none(tmp_path, line, words):
    (tmp_path / "set.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        list(tasks.read(tmp_path))


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        with pytest.raises(ConfigError, match="neither a file nor a folder of JSON lines"):
            list(tasks.read(path))


def test_every_scoring_is_used():
    used = {tasks.generate(kind, 100).scoring for kind in tasks.KINDS} | {
        expected.scoring for _, expected in RECORDS.values()
    }
    assert used == set(task.SCORINGS)
