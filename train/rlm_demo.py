"""A question about ten million characters, answered by code: ``python -m train.rlm_demo``.

The model is a script, so that nothing is needed beside this repository; the loop, the sandbox, the sub-calls and the
ledger are those of every run. Ctrl-C stops it, and the same command goes on. Exit status 1 without an answer.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import random
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mhc_jax.config import Config, ConfigError
from mhc_jax.rlm import RLM, Document, Limits, PromptTooLong, Result, Scripted, adapters, environments, page, saved
from mhc_jax.rlm.protocol import described
from train.storage.outputs import check_folder
from train.terminal import cli, interrupt
from train.terminal.table import terminal

QUESTION = "Which site had the most leaks that its crew could not stop, and who signed the last report of them?"
# For a small model, whose window the question and the usual instructions would fill.
SHORT_QUESTION, SHORT = "Which site leaks most?", "Write Python in ```repl blocks. FINAL(text) ends."
WORK = ("belt tightened", "filter changed", "valve greased", "sensor calibrated", "motor inspected", "seal replaced")
STOPPED = ("leak at the flange, tight again after an hour", "small leak, closed with a new gasket")
NOT_STOPPED = ("leak at the flange, still dripping when we left", "leak in the casing, beyond what we can mend here")
TRACE, PAGE = "trace.jsonl", "trace.html"
CREWS = ("A. Rossi", "B. Chen", "C. Okafor", "D. Novak", "E. Larsen")


@dataclasses.dataclass(frozen=True)
class Flags(Config):
    """Ask a question about a long document.

    Attributes:
        out: folder for the trace, its page, and the run until it is over.
        characters: of the document, which is generated.
        run: run directory or exported folder of a trained model that answers instead of the script.
        environment: that code runs in.
        delay: seconds that each reply of the script takes, to have time for Ctrl-C.
    """

    out: str = "runs/rlm_demo"
    characters: int = 10_000_000
    run: str = ""
    environment: Literal["monty", "monty+bwrap", "bwrap"] = "monty"
    delay: float = 0.0

    def validate(self):
        super().validate()
        self.require_counts(10_000, "characters")
        self.require_not_negative("delay")


def document(characters: int) -> tuple[Document, str]:
    """Reports of maintenance, one a line, at least so many characters in all; and the answer to :data:`QUESTION`."""
    rng = random.Random(0)
    count = characters // 60
    leaks = sorted(rng.sample(range(count), 24))
    sites = [0] * 9 + [1] * 6 + [2] * 3 + [3] * 6  # site 3 leaks often, and its crew mends it
    rng.shuffle(sites)
    leaking = dict(zip(leaks, sites, strict=True))
    lost, signed, lines, length = collections.Counter(), {}, [], 0
    for index in range(count * 2):
        crew = rng.choice(CREWS)
        if index in leaking:
            site = leaking[index]
            mended = site == 3 or rng.random() < 0.3
            what = rng.choice(STOPPED if mended else NOT_STOPPED)
            if not mended:
                lost[site] += 1
                signed[site] = crew
        else:
            site, what = rng.randrange(4, 400), rng.choice(WORK)
        lines.append(f"{index:07d} | site {site:03d} | pump {rng.randrange(9)} | {what} | signed {crew}")
        length += len(lines[-1]) + 1
        if length >= characters and index > leaks[-1]:
            break
    ((site, times), *_) = lost.most_common()
    return Document("\n".join(lines)), f"site {site:03d}: {times} leaks, the last report signed by {signed[site]}"


def block(words: str, *lines: str) -> str:
    """A turn of the script."""
    return "\n".join([words, "```repl", *lines, "```"])


TURNS = (
    block("First I look at the beginning.", "print(len(context))", "print(peek(0, 240))"),
    block(
        "One report a line. I collect those about leaks.",
        'reports = [line for line in context.split("\\n") if "leak" in line]',
        "print(len(reports))",
        'print("\\n".join(reports[:4]))',
    ),
    block(
        "Whether a leak was stopped stands in free words, so each report has to be read.",
        'prompts = ["Did the crew stop the leak? Answer yes or no.\\n" + report for report in reports]',
        "replies = llm_query_batched(prompts)",
        'open_ones = [report for report, reply in zip(reports, replies) if reply == "no"]',
        "counts = {}",
        "for report in open_ones:",
        '    site = report.split(" | ")[1]',
        "    counts[site] = counts.get(site, 0) + 1",
        "print(counts, budget())",
    ),
    block(
        "The last report of the first site goes to a model with a session of its own.",
        "site = max(counts, key=lambda name: counts[name])",
        "own = [report for report in open_ones if site in report]",
        'name = rlm_query("Who signed the last of these reports?", "\\n".join(own))',
        'FINAL(f"{site}: {counts[site]} leaks, the last report signed by {name}")',
    ),
)
CHILD = block(
    "I sort them and ask about the last.",
    'last = sorted(context.split("\\n"))[-1]',
    'FINAL(llm_query("Who signed this report? Answer with the name.\\n" + last))',
)


def script(messages: Any, delay: float = 0.0) -> str:
    """What a capable model would say: code in the turns of the root and of its child, readings of single reports."""
    time.sleep(delay)
    if messages[0]["role"] != "system":
        question, report = messages[0]["content"].split("\n", 1)
        if question.startswith("Who"):
            return report.rsplit("signed ", 1)[1]
        return "no" if any(words in report for words in NOT_STOPPED) else "yes"
    if QUESTION not in messages[1]["content"]:
        return CHILD
    return TURNS[sum(message["role"] == "assistant" for message in messages)]


def main(argv: list[str]) -> None:
    """The command; see :class:`Flags`."""
    flags = cli.parse(Flags, argv, prog="python -m train.rlm_demo")
    flags.validate()
    out = check_folder("--out", flags.out, new=(TRACE, PAGE))
    rlm = _rlm(flags)
    text, truth = document(flags.characters)
    state = out / "state"
    found = saved.read(state) if state.exists() else None
    if found and found.about != described(text.text):
        raise ConfigError(f"{state} is a run over another document; remove it, or choose another --out")
    if found:
        print(f"resuming {state} at turn {found.talk.turn}")
    print(f"document: {described(text.text)}")
    question = SHORT_QUESTION if flags.run else QUESTION
    print(textwrap.fill(f"question: {question}", 80, subsequent_indent=" " * 10), end="\n\n")
    with interrupt.advising(f"interrupted; the same command goes on from {state}"):
        try:
            result = rlm.resume(state) if found else rlm.completion(text, question, state=state)
        except PromptTooLong as error:
            state.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                out.rmdir()  # unless it holds something else
            raise ConfigError(f"--run {flags.run}: {error}; train one with a larger --data.seq-len") from None
    result.trace.save(out / TRACE)
    page.save(result.trace, out / PAGE)
    state.unlink(missing_ok=True)
    _print(result, truth)
    print(terminal([*_measured(flags, text)]))
    print(f"\ntrace: {out / TRACE}\npage:  {out / PAGE}")
    if result.status != "answered":
        sys.exit(1)


def _rlm(flags: Flags) -> RLM:
    if not flags.run:
        model = Scripted(functools.partial(script, delay=flags.delay), name="script")
        limits = Limits(max_depth=2)
        return RLM(model, environment=flags.environment, limits=limits, on_iteration_complete=_say)
    from train.storage.restore import load_run

    config, params = load_run(flags.run)
    tokenizer, room = config.data.tokenizer_of_text(), config.model.max_len
    model = adapters.from_generate(config.model, params, tokenizer, max_new_tokens=max(room // 8, 1), name=flags.run)
    return RLM(
        model,
        environment=flags.environment,
        limits=Limits(max_iterations=3, max_errors=3),
        system_prompt=SHORT,
        on_iteration_complete=_say,
    )


def _say(turn: dict[str, Any]) -> None:
    """A line for each turn of the root, and some for a fault."""
    if len(turn["path"]) == 1:
        error, said = turn["error"], (turn["reply"] or "").split("\n```", 1)[0]
        line = f"turn {turn['path'][0]}: {' '.join((error or said).split())}"
        plain = "".join(character if character.isprintable() else "?" for character in line)
        print(_folded(plain, most=4 if error else 1), flush=True)


def _folded(text: str, most: int = 10) -> str:
    """The text in lines of at most 80 characters, as many as ``most``."""
    return textwrap.fill(text, 80, subsequent_indent="  ", max_lines=most, placeholder="...")


def _print(result: Result, truth: str) -> None:
    usage = result.usage
    print("", _folded(f"{result.status}: {result.answer if result.answer is not None else result.reason}"), sep="\n")
    print(f"truth:    {truth}")
    about = " (estimated)" if usage.estimated else ""
    print(f"used {usage.calls} calls of models and {usage.tokens:,} tokens{about}\n")


def _measured(flags: Flags, text: Document) -> Iterator[dict[str, Any]]:
    """Times of single steps on the whole document, in a sandbox of their own."""
    environment = environments.make(flags.environment, Limits())
    environment.start({"context": ""}, {})
    try:
        steps = {
            "bind the document": lambda: environment.bind({"context": text.text}),
            "split it into chunks": lambda: environment.execute("parts = chunk(10_000)"),
            "find a regular expression": lambda: environment.execute(
                'import re\nlen(re.findall(r"site \\d+ .{1,20}leak", context))'
            ),
        }
        for name, step in steps.items():
            start = time.perf_counter()
            cell = step()
            if cell is not None and cell.error:
                raise ConfigError(f"{name}: {cell.error}")
            yield {"on the whole document": name, "took": f"{time.perf_counter() - start:.2f} s"}
        if peak := max(_peaks(os.getpid()), default=0):
            yield {"on the whole document": "most memory of a process of the sandbox", "took": f"{peak >> 10} MB"}
    finally:
        environment.close()


def _peaks(process: int) -> Iterator[int]:
    """The most memory in KiB that each process below this one has had; nothing where the kernel does not tell."""
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listed.read_text(encoding="ascii").split()):
            status = Path(f"/proc/{child}/status").read_text(encoding="utf-8")
            yield int(status.split("VmHWM:", 1)[1].split()[0])
            yield from _peaks(child)


if __name__ == "__main__":
    cli.run(main)
