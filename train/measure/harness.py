"""The lm-eval harness over our models: its tasks with their prompts, examples, filters and metrics."""
# pyright: reportMissingImports=false

import contextlib
import functools
import logging
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import jax
import numpy as np
from lm_eval import evaluator, utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager

from mhc_jax.config import ConfigError, check_name
from mhc_jax.functional import Params
from mhc_jax.nn.model import ModelConfig
from mhc_jax.sampling import Sampling
from train.data.tokenizer import Tokenizer
from train.measure.likelihood import continuations, log_likelihoods
from train.measure.task_data import LocalData
from train.terminal.console import task

# New tokens of an answer where neither the task nor the user says how many, as in the harness.
MAX_GEN_TOKS = 256
# Resamplings for a standard error that has no formula.
BOOTSTRAP = 1000
# The harness's own.
SEED = 1234
# What a task may say about the generation of answers.
OPTIONS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "until", "max_gen_toks"}


class HarnessLM(TemplateLM):
    """A model as the harness uses one.

    Args:
        batch: rows that are computed at once.

    Attributes:
        asked, cut: by task, the number of requests, and of those whose prompt was cut at its beginning.
    """

    def __init__(self, config: ModelConfig, params: Params, tokenizer: Tokenizer, batch: int):
        super().__init__()
        self._config, self._params, self._tokenizer, self._batch = config, params, tokenizer, batch
        self.asked, self.cut = Counter(), Counter()

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.start_id

    @property
    def max_length(self) -> int:
        return self._config.max_len

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._tokenizer.encode(string)

    def loglikelihood(self, requests, disable_tqdm=False):
        pairs = [(request.args, *self._pair(*request.args)) for request in requests]
        self._note(requests, [len(context) + len(asked) > self.max_length + 1 for _, context, asked in pairs])
        return self._loglikelihood_tokens(pairs)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation)
        return (ids[:1], ids[1:]) if ids[0] == self.prefix_token_id else ([self.prefix_token_id], ids)

    def _loglikelihood_tokens(self, requests, **_):
        pairs = [(context, continuation) for _, context, continuation in requests]
        with task(f"scoring {len(pairs):,} continuations", len(pairs)) as work:
            return log_likelihoods(self._config, self._params, pairs, self._batch, work.advance)

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
        options, prompts, long = [], [], []
        for index, request in enumerate(requests):
            text, asked = request.args
            options.append(normalize_gen_kwargs(asked, MAX_GEN_TOKS))
            room = self.max_length - options[-1]["max_gen_toks"]
            ids = self.tok_encode(text) or [self.prefix_token_id]
            prompts.append(ids[-room:])
            long.append(len(ids) > room)
            groups[str(options[-1])].append(index)
        self._note(requests, long)
        answers = [""] * len(requests)
        with task(f"answering {len(requests):,} questions", len(requests)) as work:
            for indices in groups.values():
                indices.sort(key=lambda index: -len(prompts[index]))
                for at in range(0, len(indices), self._batch):
                    part = indices[at : at + self._batch]
                    found = self._continued([prompts[index] for index in part], options[part[0]], part)
                    for index, answer in zip(part, found):
                        answers[index] = answer
                    work.advance(len(part))
        return answers

    def _continued(self, prompts: list[list[int]], options: Mapping[str, Any], seeds: list[int]) -> list[str]:
        tokenizer = self._tokenizer
        drawn = {name: options[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in options}
        sampling = Sampling(
            max_new_tokens=options["max_gen_toks"],
            eos_id=tokenizer.eos_id,
            vocab_size=min(tokenizer.vocab_size, self._config.vocab_size),
            **(drawn if options["do_sample"] else {"temperature": 0.0}),
        )
        keys = [jax.random.fold_in(jax.random.key(SEED), seed) for seed in seeds]
        key = jax.numpy.stack([*keys, *[keys[-1]] * (self._batch - len(keys))]) if options["do_sample"] else None

        def text(ids: Sequence[int]) -> str:
            whole = tokenizer.decode([i for i in ids if i != tokenizer.eos_id])
            return postprocess_generated_text(whole, list(options["until"]), None)

        def done(ids: Sequence[int]) -> bool:
            whole = tokenizer.decode(ids)
            return any(stop in whole for stop in options["until"] if stop) or (tokenizer.eos_id in ids)

        found = continuations(self._config, self._params, prompts, sampling, self._batch, key=key, done=done)
        return [text(ids) for ids in found]

    def _note(self, requests, cut: Sequence[bool]) -> None:
        self.asked.update(request.task_name for request in requests)
        self.cut.update(request.task_name for request, is_cut in zip(requests, cut) if is_cut)


def load_tasks(names: Sequence[str], data: LocalData | None, shots: int | None, max_gen_toks: int) -> dict[str, Any]:
    """Tasks and groups of tasks with their data, as :meth:`lm_eval.tasks.TaskManager.load` gives them.

    Args:
        names: of tasks, groups or tags.
        data: files to read; None takes the Hub's data.
        shots: examples before each question; None for as many as a task says.
        max_gen_toks: new tokens of an answer; 0 for as many as a task says.

    Raises:
        ConfigError: an unknown name, or data that are missing.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    random.seed(0)
    np.random.seed(SEED)  # noqa: NPY002  (tasks draw from it)
    with task("reading the tasks of the harness"):
        manager = _manager()
        for name in names:
            check_name("task", name, manager.all_tasks)
        with _data_from(data):
            try:
                loaded = manager.load(list(names))
            except ValueError as error:
                raise ConfigError(f"--tasks: {error}") from None
    for found in loaded["tasks"].values():
        _set(found, shots, max_gen_toks)
    return loaded


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


def check_room(loaded: Mapping[str, Any], max_len: int) -> None:
    """Raises ConfigError for answers that a model of that length has no room for, or that it cannot give."""
    for name, found in loaded["tasks"].items():
        if found.OUTPUT_TYPE != "generate_until":
            continue
        options = normalize_gen_kwargs(found.get_config("generation_kwargs") or {}, MAX_GEN_TOKS)
        if options["max_gen_toks"] >= max_len:
            raise ConfigError(
                f"{name} asks for up to {options['max_gen_toks']} new tokens, which leaves no room for the question in "
                f"the {max_len} of the model; give a smaller --max-gen-toks"
            )
        if odd := sorted(options.keys() - OPTIONS):
            raise ConfigError(f"{name} asks for answers with {', '.join(odd)}, which is not supported")


def evaluate(lm: HarnessLM, loaded: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The harness's results with all samples.

    Args:
        limit: documents of each task; 0 for all.
    """
    with contextlib.redirect_stdout(sys.stderr):  # the harness tells what it does
        return evaluator.evaluate(lm, loaded, limit=limit or None, bootstrap_iters=BOOTSTRAP)


def rows(results: Mapping[str, Any], lm: HarnessLM) -> list[dict[str, Any]]:
    """A row for each metric of each task, below that of its group if it has one."""
    members = results["group_subtasks"]
    inside = {name for names in members.values() for name in names}
    return [
        row
        for root in results["results"]
        if root not in inside
        for name in _tree(root, members)
        for row in _rows(name, results, lm, [leaf for leaf in _tree(name, members) if leaf in results["samples"]])
    ]


def _tree(name: str, members: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield name
    for member in members.get(name, ()):
        yield from _tree(member, members)


def _rows(name: str, results: Mapping[str, Any], lm: HarnessLM, leaves: Sequence[str]) -> Iterator[dict[str, Any]]:
    """``leaves`` are the tasks in a group, or the task itself."""
    asked, cut = (sum(count[leaf] for leaf in leaves) for count in (lm.asked, lm.cut))
    chances = [chance for leaf in leaves for chance in _chances(results["samples"][leaf])]
    for key, value in results["results"][name].items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = results["results"][name].get(f"{metric}_stderr,{kept}")
        yield {
            "task": name,
            "version": results["versions"].get(name),
            "shots": results["n-shot"].get(name),
            "n": sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
            "metric": metric if kept == "none" else f"{metric}, {kept}",
            "value": value,
            "stderr": None if error == "N/A" else error,
            "chance": sum(chances) / len(chances) if chances and metric.startswith("acc") else None,
            "cut": cut / asked if asked else 0.0,
        }


def _chances(samples: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """The accuracy of guessing at each document, of which each choice is a request."""
    yield from (1 / len(sample["arguments"]) for sample in samples if len(sample["arguments"]) > 1)
