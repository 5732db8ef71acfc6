"""A user's own benchmark: questions in lines of JSON, each with its answer, and perhaps with choices."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mhc_jax.config import ConfigError
from mhc_jax.sampling import Sampling
from train.data.text import json_objects, string_field
from train.measure import text_scores
from train.measure.tasks import Score, Tasks
from train.measure.text_model import TextModel
from train.terminal.console import task

# New tokens of an answer where the user does not say how many.
MAX_NEW = 64
# Ends of such files' names.
ENDS = (".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.zst")


@dataclasses.dataclass(frozen=True)
class Question:
    """One line of a file.

    Attributes:
        prompt: what is asked, as the model reads it.
        response: the right answer, as it follows the prompt: with a blank before it if one belongs there.
        choices: all answers to choose from, the right one among them; none for a free answer.
    """

    prompt: str
    response: str
    choices: tuple[str, ...] = ()


def read_questions(path: Path) -> list[Question]:
    """The questions in a file, whose objects have the fields of :class:`Question`.

    Raises:
        ConfigError: no such file, no question, or a line that is none; or choices at some of the questions only.
    """
    if not path.is_file():
        raise ConfigError(f"--tasks {path}: no such file")
    found = [_question(record, where) for where, record in json_objects(path)]
    if not found:
        raise ConfigError(f"--tasks {path} holds no question")
    if len({bool(question.choices) for question in found}) > 1:
        raise ConfigError(f"--tasks {path}: give choices with all questions, or with none")
    return found


def _question(record: Any, where: str) -> Question:
    advice = "a question has a prompt and a response"
    prompt, response = (string_field(record, name, where, advice) for name in ("prompt", "response"))
    choices = record.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise ConfigError(f"{where}: choices must be a list of texts")
    if choices and response not in choices:
        raise ConfigError(f"{where}: the response is none of the choices")
    if not response:
        raise ConfigError(f"{where}: the response is empty")
    return Question(prompt, response, tuple(choices))


class Questions(Tasks):
    """The questions of a file.

    Args:
        limit: how many of them; 0 for all.
        max_new: new tokens of a free answer, which ends at the end of a text or, if no response has several lines, of
            its line; 0 for :data:`MAX_NEW`.
    """

    def __init__(self, path: Path, limit: int, max_new: int):
        self._name, self._max_new = str(path), max_new or MAX_NEW
        self._questions = read_questions(path)[: limit or None]

    def check(self, config):
        if not self._questions[0].choices and self._max_new >= config.max_len:
            raise ConfigError(
                f"{self._name}: {self._max_new} new tokens leave no room for the question in the {config.max_len} of "
                "the model; give a smaller --max-gen-toks"
            )

    def score(self, model):
        ask = _choose if self._questions[0].choices else functools.partial(_answer, max_new=self._max_new)
        values, cut, records = ask(model, self._questions)
        about = {"task": self._name, "version": None, "shots": 0, "n": len(self._questions), "cut": cut}
        guessed = chance(self._questions)
        scores = [
            Score(**about, metric=metric, value=value, stderr=error, chance=guessed)
            for metric, (value, error) in values.items()
        ]
        return scores, [{"task": self._name, **record} for record in records]


Asked = tuple[dict[str, tuple[float, float | None]], float, list[dict[str, Any]]]


def _choose(model: TextModel, questions: Sequence[Question]) -> Asked:
    """Accuracy of the likeliest choice, and of the likeliest per byte; the share of cut prompts; a record of each."""
    pairs = [model.pair(question.prompt, choice) for question in questions for choice in question.choices]
    with task(f"scoring {len(pairs):,} choices", len(pairs)) as work:
        values = iter([value for value, _ in model.log_likelihoods(pairs, work.advance)])
    records = []
    for question in questions:
        nats = {choice: next(values) for choice in question.choices}
        likeliest = max(nats, key=nats.__getitem__)
        per_byte = max(nats, key=lambda choice: nats[choice] / len(choice.encode()))
        records.append(dataclasses.asdict(question) | {"answer": likeliest, "per_byte": per_byte, "nats": nats})
    right = {
        name: [float(record[field] == record["response"]) for record in records]
        for name, field in (("acc", "answer"), ("acc_norm", "per_byte"))
    }
    return {name: mean(found) for name, found in right.items()}, _share(map(model.loses, pairs)), records


def _answer(model: TextModel, questions: Sequence[Question], max_new: int) -> Asked:
    """The same with exact match, F1 and BLEU of the greedy answer, and bits per byte of the right one."""
    responses = [question.response for question in questions]
    until = () if any("\n" in response.strip() for response in responses) else ("\n",)
    pairs = [model.pair(question.prompt, question.response) for question in questions]
    with task(f"scoring {len(pairs):,} responses", len(pairs)) as work:
        nats = [-value for value, _ in model.log_likelihoods(pairs, work.advance)]
    prompts, sampling = [question.prompt for question in questions], Sampling(max_new_tokens=max_new, temperature=0.0)
    with task(f"answering {len(prompts):,} questions", len(prompts)) as work:
        found = model.answers(prompts, sampling, until, work.advance)
    answers = [answer for answer, _ in found]
    scores = {
        name: mean([score(answer, response) for answer, response in zip(answers, responses)])
        for name, score in (("exact_match", text_scores.exact_match), ("f1", text_scores.f1))
    }
    scores["bleu"] = text_scores.bleu(answers, responses), None
    scores["bits_per_byte"] = text_scores.bits_per_byte(sum(nats), "".join(responses)), None
    records = [
        dataclasses.asdict(question) | {"answer": answer, "nats": value}
        for question, answer, value in zip(questions, answers, nats)
    ]
    return scores, _share(cut for _, cut in found), records


def chance(questions: Sequence[Question]) -> float | None:
    """The accuracy of guessing; None for free answers."""
    shares = [1 / len(question.choices) for question in questions if question.choices]
    return sum(shares) / len(shares) if shares else None


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error, for which it takes two values."""
    n = len(values)
    middle = sum(values) / n
    if n < 2:
        return middle, None
    return middle, math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1) / n)


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found)
