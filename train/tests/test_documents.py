"""Every command and every Python block of the README and of docs/: what can run does, the rest is parsed.

The quick tests run the blocks of commands of the README and parse all others; the slow ones run those.

A block of commands runs from its first line to its last in one folder, as a reader would type it; the blocks of Python
of a page share their names.
"""

import argparse
import contextlib
import copy
import importlib
import importlib.util
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import jax
import pytest
import torch

import mhc_jax
import train
from mhc_jax import interop, registry
from mhc_jax.interop.deepseek_v4 import site_to_deepseek_v4
from mhc_jax.models import gla, mhc_ssm, nanogpt, with_topology
from mhc_jax.tests.own import slow_unless
from train.checks.subject import small
from train.loop import named
from train.measure import target
from train.report import markup
from train.terminal import cli
from train.tests.documents import PAGES, ROOT, blocks, calls, recipes, sessions, split

SMALL = {
    "--model.width": "48",
    "--model.layers": "1",
    "--data.seq-len": "32",
    "--data.batch-size": "2",
    "--data.max-eval-tokens": "200",
    "--train.accumulate": "1",
    "--train.steps": "2",
    "--data.sample-tokens": "4",
    "--objective.chunk": "16",
}
NOTES = {"--data.source": "notes.txt"}
BYTES = SMALL | {"--data.tokenizer": "bytes"}
# Of a model of two networks.
NETWORKS = {
    f"--model.{name}.{size}": x for name in ("aggregator", "reader") for size, x in (("width", "48"), ("layers", "1"))
}
SCANNED = {name: x for name, x in BYTES.items() if not name.startswith("--model")} | NETWORKS | {"--model.chunk": "8"}
TAUGHT = NOTES | {"--run-dir": "runs/taught"}
# Begins with a space, or it would be a flag itself.
TRACKED = " --train.steps 2 --data.stage-steps 0 --data.seq-len 4 --data.eval-count 1 --model.width 16 --model.layers 1"
RECORDS = {
    "--model.width": "48",
    "--model.layers": "1",
    "--model.vocab-size": "257",
    "--data.tokenizer": "bytes",
    "--data.seq-len": "600",
    "--data.batch-size": "2",
    "--train.steps": "2",
}
# How a command differs here from what stands on the page, by how it begins: the first that fits counts, and what fits
# none runs as it stands. Flags and words get other values, the first of PLACES is put where the page leaves it to the
# reader, and a reason says why a command is only parsed.
HERE = {
    "python -m train.benchmark": "times processes against each other for minutes",
    "python -m parity_tests": "compares for minutes to hours",
    "python -m mutants": "hours",
    "python -m train.prepare_fineweb --out shards --max-tokens": "reads from the Hub",
    "python -m train.prepare_fineweb": {"--shard-tokens": "400"},
    "python -m train.export RUN runs/gpt2": {"RUN": "runs/plain"},
    "python -m train.export RUN FOLDER": {"RUN": "runs/plain"},
    "python -m mhc_jax.rlm.environments": "makes all attempts to get out, which its own tests do",
    "python -m train.rlm_bench --run": {},
    "python -m train.rlm_bench": {"--lengths": "2000", "--examples": "1"},
    "python -m train.rlm_demo": {"--characters": "20000"},
    "python -m train.prepare_rlm": {"--count": "12", "--validation": "3", "--characters": "60"},
    "python -m train.validate rlm": {"rlm": "rlm_small_plain"},
    "python -m train.validate NAME@shc": {"NAME@shc": "rlm_small_plain@shc"},
    "python -m train.validate quickstart": "checks of that kind have run",
    "python -m train.sample": {"--tokens": "4"},
    "python -m train.evaluate RUN --steps": {"500": "2", "1000": "2"},
    "python -m train.evaluate RUN --tasks questions.jsonl": "asks questions of the reader's",
    "python -m train.evaluate RUN --tasks": "takes the lm-eval harness",
    "python -m train.evaluate RUN RUN --tasks": "the same",
    "python -m train.evaluate runs/mhc --tasks": "the same",
    "python -m train.state_tracking words_gated_delta words_gated_delta_positive": "trains for minutes",
    "python -m train.state_tracking words_transformer_scan": "trains for minutes",
    "python -m train.state_tracking": {"--train-flags": TRACKED, "--words": "8"},
    "python -m train.distill gpt2_folder": BYTES | {"--model.mixer.heads": "4", "--model.vocab-size": "50304"},
    "python -m train.distill RUN NAME": BYTES | TAUGHT | {"--model.vocab-size": "50304"},
    "python -m train.distill RUN shc_student": BYTES
    | TAUGHT
    | {"--model.vocab-size": "50304", "--run-dir": "runs/taught_student"},
    "python -m train.distill": BYTES,
    "python -m train NAME --objective distillation": BYTES | TAUGHT | {"--run-dir": "runs/plainly"},
    "python -m train --resume": {"--train.steps": "4"},
    "python -m train --config": {"--train.steps": "2"},
    "python -m train shc_500m --data.path": SMALL | {"--model.mixer.heads": "4"},
    "python -m train shc_500m_plain --data.path": SMALL | {"--model.mixer.heads": "4"},
    "python -m train squared_relu": SMALL | NOTES,
    "python -m train mqar_gated_delta": {"--train.steps": "2", "--data.eval-count": "1", "--model.width": "16"},
    "python -m train delayed_copy": {"--train.steps": "2", "--data.eval-count": "1", "--model.width": "8"},
    "python -m train --import layer_scale": SMALL | NOTES,
    "python -m train quickstart": SMALL | NOTES,
    "python -m train quickstart@mhc_lite": SMALL | NOTES,
    "python -m train gpt2@dynamic_mhc --model.residual.implementation pallas": "takes attention of GPUs",
    "python -m train transformer_scan_quickstart": SCANNED,
    "python -m train gla_170m_baseline": BYTES | NOTES,
    "python -m train gated_deltanet_170m_baseline_shortconv@mhc": BYTES | NOTES,
    "python -m train transformer_scan@mhc": SCANNED | NOTES,
    "python -m train transformer_scan_170m_c64_original": SCANNED | NOTES,
    "python -m train nanogpt_mhc --data.path": SMALL,
    "python -m train nanogpt_mhc --model.mixer": SMALL | NOTES | {"--run-dir": "runs/latent"},
    "python -m train rlm_small --data.path": SMALL,
    "python -m train rlm_small_original --data.path": SMALL,
    "python -m train rlm_small_plain --data": RECORDS,
    "python -m train": BYTES,
}
PLACES = {
    "FOLDER_OF_PARQUET": "wikitext",
    "FILE_OR_FOLDER": "notes.txt",
    "FILE": "notes.txt",
    "RUN": "runs/mixed",
    "NAME": "quickstart",
    "MACHINE": "h100:1",
}
# Python at a size that a test affords.
SMALLER = {
    "width=128, layers=4": "width=16, layers=2",
    'configs.load("quickstart")': "smaller(configs.load('quickstart'))",
}


def name_of(page):
    return str(page.relative_to(ROOT))


class Parsed(Exception):
    """The flags of a command are its own, and the configuration that it names exists."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the pages take for granted; exported weights stand for what was trained."""
    folder = tmp_path_factory.mktemp("reader")
    text = "".join(f"Line {i} of a small text.\n" for i in range(400))
    for name in ("notes.txt", "input.txt"):
        (folder / name).write_text(text)
    (folder / "split").mkdir()
    for name in ("train", "validation", "test"):
        (folder / "split" / f"{name}.txt").write_text(text)
    (folder / "wikitext").mkdir()
    for name in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"text": text.splitlines(keepends=True)})
        rows.to_parquet(folder / "wikitext" / f"{name}-00000-of-00001.parquet")
    for system, make, file in (("mhc_ssm", mhc_ssm, "mhc_ssm.pt"), ("nanogpt", nanogpt, "ckpt.pt")):
        config = make(form="original", vocab_size=11, max_len=8, width=12, layers=1)
        weights = interop.to_original(system, config, mhc_jax.init(config, jax.random.key(0)))
        model = {name: torch.tensor(value) for name, value in weights.items()}
        torch.save({"model": model, "config": {"n_head": 6}} if system == "nanogpt" else model, folder / file)
    tiny = nanogpt(heads=2, vocab_size=257, max_len=32, width=8, layers=1)
    for run, topology in (("mixed", "mhc"), ("plain", "plain")):
        config = with_topology(tiny, topology)
        mhc_jax.save(folder / "runs" / run, config, mhc_jax.init(config, jax.random.key(0)))
    (folder / "runs" / "notes").mkdir()
    (folder / "runs" / "notes" / "config.json").write_text(named.load("quickstart").to_json())
    export(folder)
    config = small(gla())
    config = config.replace(mixer=config.mixer.replace(gate_rank=16))  # the one that checkpoints have
    params = mhc_jax.init(config, jax.random.key(0))
    interop.save_huggingface(folder / "gla_folder", config, params)
    weights = interop.to_original("gla", config, params)
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, folder / "gla.pt")
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """The folder with runs in it, and what is exported from them."""
    for made in ("runs", "mhc_folder", "gpt2_folder"):
        shutil.rmtree(place / made)
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        for name, run in (("gpt2@mhc", "runs/mixed"), ("gpt2", "runs/plain")):
            execute(f"python -m train {name} --data.source split --run-dir {run}")
    export(place)


def export(folder):
    """Both runs as folders of transformers."""
    with contextlib.chdir(folder):
        for run, exported in (("runs/plain", "gpt2_folder"), ("runs/mixed", "mhc_folder")):
            execute(f"python -m train.export {run} {exported} --format huggingface")


@pytest.fixture(scope="module")
def done():
    """What has run: a command that stands on two pages runs once."""
    return set()


@pytest.fixture(scope="module")
def seen():
    """What was read, likewise."""
    return set()


@pytest.fixture
def reader(place, monkeypatch):
    """In that folder, with what the examples register forgotten afterwards."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr(registry, "_REGISTRY", copy.deepcopy(registry._REGISTRY))
    monkeypatch.setattr(markup, "svg", lambda draw, theme: bytes(draw() is None))  # to save pictures takes seconds
    for name in ("examples", "docs"):
        shutil.copytree(ROOT / name, place / name, dirs_exist_ok=True)
    known = set(sys.modules)
    yield place
    for name in {path.stem for path in (ROOT / "examples").glob("*.py")} - known:
        sys.modules.pop(name, None)


def rule(command):
    """What of :data:`HERE` counts for it."""
    if "--help" in command or command == "python -m train":
        return {}
    if "--compile.topology" in command:
        return "compiles for a machine that is not here, which takes its plug-in"
    return next((value for start, value in HERE.items() if begins(command, start)), {})


def begins(command, start):
    """Whether its first words are these."""
    return f"{command} ".startswith(f"{start} ")


def changed(words, values):
    """``words`` with what ``values`` and :data:`PLACES` say instead, flags that are missing at the end."""
    flags = {word: value for word, value in values.items() if word.startswith("--")}
    plain = PLACES | {word: value for word, value in values.items() if word not in flags}
    new = [flags.get(before) or plain.get(word, word) for before, word in zip(["", *words], words)]
    return new + [word for flag, value in flags.items() if flag not in words for word in (flag, value)]


def main_of(module):
    """The function of ``python -m module``."""
    package = importlib.util.find_spec(module).submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module).main


def execute(command, *, parse_only=False):
    """Runs a command in this process, or stops it when its flags are read; an end like that of ``--help`` is fine."""
    environment, words = split(command)
    assert words[:2] == ["python", "-m"], f"not a command in Python: {command}"
    how = rule(shlex.join(words))
    with pytest.MonkeyPatch.context() as patch:
        if "PYTHONPATH" in environment:
            patch.syspath_prepend(environment["PYTHONPATH"])
        argv = changed(words[3:], how if isinstance(how, dict) else {})
        if parse_only:  # what an earlier command would have made
            argv = [
                re.sub(r"^runs/\w+", lambda run: run[0] if Path(run[0]).exists() else "runs/mixed", word)
                for word in argv
            ]
        patch.setattr(sys, "argv", [words[2], *argv])
        main = main_of(words[2])
        if parse_only or isinstance(how, str):
            patch.setattr(cli, "parse", stopping(cli.parse))
            patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
            patch.setattr(target, "prepare_environment", lambda: None)
        try:
            main(*[argv][: len(inspect.signature(main).parameters)])  # that of mutants reads sys.argv
        except Parsed:
            pass
        except BaseException as fault:
            fault.add_note(f"in: {command}")
            if not (isinstance(fault, SystemExit) and not fault.code):
                raise


def stopping(parse):
    def parse_and_stop(*arguments, **options):
        parse(*arguments, **options)
        raise Parsed

    return parse_and_stop


def commands(page, known, **which):
    """Each command of the page that is not known already."""
    for command in itertools.chain.from_iterable(sessions(page, **which)):
        if command not in known:
            known.add(command)
            yield command, *split(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_are_known(page, reader, seen, tmp_path):
    for command, environment, words in commands(page, seen):
        if words[0] == "make":
            subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], check=True, stdout=subprocess.DEVNULL)
        elif words[0].endswith(".sh"):
            for call in calls(changed(words, {}), environment, tmp_path):
                execute(call, parse_only=True)
        else:
            execute(command, parse_only=True)


@pytest.mark.slow
def test_the_blocks_of_commands_of_the_readme_run(reader, trained, done):
    run_commands(PAGES[0], done, fenced_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_run(page, reader, trained, done):
    run_commands(page, done)


def run_commands(page, done, **which):
    for command, environment, words in commands(page, done, **which):
        # More devices than one take a process of their own.
        if words[0] == "python" and "XLA_FLAGS" not in environment:
            execute(command)


@pytest.mark.parametrize("command", recipes())
def test_the_commands_of_the_makefile_are_known(command, reader):
    if "-m pytest" not in command:
        execute(command, parse_only=True)


@pytest.mark.parametrize(
    "page", slow_unless(PAGES[:1], [page for page in PAGES if blocks(page, "python")]), ids=name_of
)
def test_the_python_of_a_page(page, reader, request, monkeypatch):
    if "mhc_folder" in page.read_text():  # with the tokenizer of a run
        request.getfixturevalue("trained")
    monkeypatch.syspath_prepend(str(reader / "examples"))
    site = {"phi": torch.ones(24, 8), "bias": torch.ones(24), "alpha": torch.ones(3)}
    names = {"smaller": smaller, **site_to_deepseek_v4(**site)}
    for block in blocks(page, "python"):
        for written, instead in SMALLER.items():
            block = block.replace(written, instead)
        exec(compile(block, str(page), "exec"), names)
    for made in ("runs/saved", "folder", "runs/quickstart"):
        shutil.rmtree(reader / made, ignore_errors=True)


@pytest.mark.slow
def test_the_command_for_several_devices(reader):
    (command,) = [line for page in PAGES for session in sessions(page) for line in session if "XLA_FLAGS" in line]
    environment, words = split(command)
    argv = [*changed(words[1:], SMALL | {"--data.source": "notes.txt", "--data.batch-size": "8"})]
    settings = os.environ | environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, *argv], env=settings, check=True, timeout=600)


def smaller(config):
    """A configuration with :data:`SMALL` on a small text."""
    flags = [word for item in (SMALL | NOTES).items() for word in item]
    return cli.parse(train.config.RunConfig, flags, prog="", default=config)


def test_every_rule_is_still_needed():
    shown = [shlex.join(split(command)[1]) for page in PAGES for session in sessions(page) for command in session]
    shown += recipes()
    for start in HERE:
        assert any(begins(command, start) for command in shown), f"no page says {start}"
