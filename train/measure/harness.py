"""The lm-eval harness over our models: its tasks with their prompts, examples, filters and metrics."""
# pyright: reportMissingImports=false

import contextlib
import functools
import logging
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from mhc_jax.config import ConfigError, check_name
from mhc_jax.sampling import Sampling
from train.measure.task_data import LocalData
from train.measure.tasks import Score, Tasks
from train.measure.text_model import TextModel
from train.terminal.console import task

# New tokens of an answer where neither the task nor the user says how many, as in the harness.
MAX_GEN_TOKS = 256
# The harness's own, of its choice of examples.
SEED = 1234
# Resamplings for a standard error that has no formula.
BOOTSTRAP = 1000
# What a task may say about the generation of answers.
OPTIONS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "until", "max_gen_toks"}


class HarnessTasks(Tasks):
    """Tasks and groups of tasks of the harness.

    Args:
        names: of tasks, groups or tags.
        data: files to read; None takes the Hub's data.
        shots: examples before each question; None for as many as a task says.
        limit: documents of each task; 0 for all.
        max_gen_toks: new tokens of an answer; 0 for as many as a task says.

    Raises:
        ConfigError: an unknown name, or data that are missing.
    """

    def __init__(self, names: Sequence[str], data: LocalData | None, shots: int | None, limit: int, max_gen_toks: int):
        self._names, self._limit = names, limit
        for name in ("lm_eval", "datasets"):
            logging.getLogger(name).setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        random.seed(0)
        np.random.seed(SEED)  # noqa: NPY002  (tasks draw from it)
        with task("reading the tasks of the harness"):
            for name in names:
                check_name("task", name, _manager().all_tasks)
            with _data_from(data):
                try:
                    self._loaded = _manager().load(list(names))
                except ValueError as error:
                    raise ConfigError(f"--tasks: {error}") from None
        for found in self._loaded["tasks"].values():
            _set(found, shots, max_gen_toks)

    def check(self, config):
        for name, found in self._loaded["tasks"].items():
            if found.OUTPUT_TYPE != "generate_until":
                continue
            options = normalize_gen_kwargs(found.get_config("generation_kwargs") or {}, MAX_GEN_TOKS)
            if options["max_gen_toks"] >= config.max_len:
                raise ConfigError(
                    f"{name} asks for up to {options['max_gen_toks']} new tokens, which leaves no room for the "
                    f"question in the {config.max_len} of the model; give a smaller --max-gen-toks"
                )
            if odd := sorted(options.keys() - OPTIONS):
                raise ConfigError(f"{name} asks for answers with {', '.join(odd)}, which is not supported")

    def score(self, model):
        lm = HarnessLM(model)
        with contextlib.redirect_stdout(sys.stderr):  # the harness tells what it does
            results = evaluator.evaluate(lm, self._loaded, limit=self._limit or None, bootstrap_iters=BOOTSTRAP)
        members = results["group_subtasks"]
        inside = {name for names in members.values() for name in names}
        roots = [name for name in results["results"] if name not in inside]  # of a tag, all of its tasks
        roots = dict.fromkeys([*(name for name in self._names if name in roots), *roots])
        names = [name for root in roots for name in _tree(root, members)]
        scores = [score for name in names for score in _scores(name, results, lm)]
        records = [{"task": name, **record} for name, found in results["samples"].items() for record in found]
        return scores, records


class HarnessLM(TemplateLM):
    """A model as the harness uses one.

    Attributes:
        asked, cut: by task, the number of requests, and of those whose prompt was cut at its beginning.
    """

    def __init__(self, model: TextModel):
        super().__init__()
        self._model = model
        self.asked, self.cut = Counter(), Counter()

    @property
    def eot_token_id(self) -> int:
        return self._model.tokenizer.start_id

    @property
    def max_length(self) -> int:
        return self._model.config.max_len

    @property
    def tokenizer_name(self) -> str:
        return self._model.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._model.tokenizer.encode(string)

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = [self._model.pair(*request.args) for request in requests]
        self._note(requests, map(self._model.loses, pairs))
        return self._loglikelihood_tokens([(request.args, *pair) for request, pair in zip(requests, pairs)])

    def _loglikelihood_tokens(self, requests, **_):
        pairs = [(context, continuation) for _, context, continuation in requests]
        with task(f"scoring {len(pairs):,} continuations", len(pairs)) as work:
            return self._model.log_likelihoods(pairs, work.advance)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(*request.args)
            found = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            for window in map(utils.make_disjoint_window, found):
                windows.append((None, *window))
                owners.append(index)
        self._note(requests, [False] * len(requests))
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[index] += value
        return totals

    def generate_until(self, requests, disable_tqdm=False):
        groups: dict[str, list[int]] = defaultdict(list)
        options = [normalize_gen_kwargs(request.args[1], MAX_GEN_TOKS) for request in requests]
        for index, asked in enumerate(options):
            groups[str(asked)].append(index)
        answers, cut = [""] * len(requests), [False] * len(requests)
        with task(f"answering {len(requests):,} questions", len(requests)) as work:
            for indices in groups.values():
                prompts, asked = [requests[index].args[0] for index in indices], options[indices[0]]
                found = self._model.answers(prompts, _sampling(asked), asked["until"], work.advance)
                for index, result in zip(indices, found):
                    answers[index], cut[index] = result
        self._note(requests, cut)
        return answers

    def _note(self, requests, cut: Iterable[bool]) -> None:
        self.asked.update(request.task_name for request in requests)
        self.cut.update(request.task_name for request, is_cut in zip(requests, cut) if is_cut)


def _sampling(options: Mapping[str, Any]) -> Sampling:
    drawn = {name: options[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in options}
    drawn = drawn if options["do_sample"] else {"temperature": 0.0}
    return Sampling(max_new_tokens=options["max_gen_toks"], **drawn)


@functools.cache
def _manager() -> TaskManager:
    """The index of all tasks: it takes seconds to read."""
    return TaskManager()


@contextlib.contextmanager
def _data_from(data: LocalData | None) -> Iterator[None]:
    """A context in which tasks are built over these data, or over the Hub's."""
    download = ConfigurableTask.download

    def local(self, *_, **__):
        assert data is not None
        rows, config = data.load(self.DATASET_PATH, self.DATASET_NAME), self.config
        self.dataset = datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in rows})
        wanted = config.test_split or config.validation_split
        if wanted not in rows:
            raise ConfigError(f"--data {data.folder} holds no {wanted} split of {self.DATASET_PATH}, for {config.task}")
        # Tasks look at the splits of their examples even if they take none.
        self.missing = {config.training_split, config.validation_split, self.fewshot_cfg.split} - {*rows, None}
        for split in self.missing:
            self.dataset[split] = self.dataset[wanted].select([])

    def hub(self, dataset_kwargs=None, **options):
        try:
            download(self, dataset_kwargs, **options)
        except Exception as error:  # of the network, of files, of the data set's own code
            raise ConfigError(
                f"the data of {self.config.task}, {self.DATASET_PATH} on the Hugging Face Hub, cannot be read "
                f"({str(error).splitlines()[0]}); give --data FOLDER"
            ) from None

    ConfigurableTask.download = local if data else hub
    try:
        yield
    finally:
        ConfigurableTask.download = download


def _set(found: Any, shots: int | None, max_gen_toks: int) -> None:
    """The settings that the harness itself makes from such flags."""
    if found.OUTPUT_TYPE == "generate_until" and max_gen_toks:
        found.set_config("generation_kwargs", {"max_gen_toks": max_gen_toks}, update=True)
    usual = found.get_config("num_fewshot")
    if shots is not None and usual != 0 and found.OUTPUT_TYPE != "loglikelihood_rolling":  # which asks no question
        found.set_config("num_fewshot", shots)
    elif usual is None:
        found.set_config("num_fewshot", 0)
    found.set_fewshot_seed(SEED)
    examples, config = found.fewshot_cfg, found.config
    split = examples.split or (None if examples.samples else config.training_split or config.validation_split)
    if config.num_fewshot and split in getattr(found, "missing", ()):
        raise ConfigError(
            f"--data holds no {split} split of {found.DATASET_PATH}, of which {config.task} takes its examples; add "
            "its file, or give --shots 0"
        )


def _tree(name: str, members: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield name
    for member in members.get(name, ()):
        yield from _tree(member, members)


def _scores(name: str, results: Mapping[str, Any], lm: HarnessLM) -> Iterator[Score]:
    """Those of a task, or of a group over all of its tasks."""
    leaves = [leaf for leaf in _tree(name, results["group_subtasks"]) if leaf in results["samples"]]
    asked, cut = (sum(count[leaf] for leaf in leaves) for count in (lm.asked, lm.cut))
    chances = [chance for leaf in leaves for chance in _chances(results["samples"][leaf])]
    values = results["results"][name]
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        yield Score(
            task=name,
            version=results["versions"].get(name),
            shots=results["n-shot"].get(name),
            n=sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
            metric=metric if kept == "none" else f"{metric}, {kept}",
            value=float(value),
            stderr=None if error in (None, "N/A") else float(error),
            chance=sum(chances) / len(chances) if chances and metric.startswith("acc") else None,
            cut=cut / asked if asked else 0.0,
        )


def _chances(samples: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """The accuracy of guessing at each document, of which each choice is a request."""
    yield from (1 / len(sample["arguments"]) for sample in samples if len(sample["arguments"]) > 1)
