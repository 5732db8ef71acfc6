"""One level of a completion: a model, an environment, and the turns between them (Zhang et al., arXiv 2512.24601)."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from mhc_jax.rlm import prelude, protocol
from mhc_jax.rlm.callbacks import report
from mhc_jax.rlm.calls import FAULTS, Calls
from mhc_jax.rlm.environments.base import Environment, SandboxDied, SandboxUnavailable
from mhc_jax.rlm.ledger import Exhausted, Ledger
from mhc_jax.rlm.memo import Memo
from mhc_jax.rlm.models import ModelFailed, PromptTooLong, name_of
from mhc_jax.rlm.program import Conversation, Outcome, Path, Program, Request, Shown
from mhc_jax.rlm.subcalls import Subcalls, functions
from mhc_jax.rlm.trace import about

# Kinds of what a name in an answer does not mean: max, list, a function or a module of the session.
NO_ANSWER = ("builtin_function_or_method", "function", "module", "type")
# Limits whose end leaves a call for the answer: it was reserved.
FORCED = {"iterations": "All turns are used up.", "calls": "All calls are used up."}


class Level:
    """Runs turns until there is an answer or nothing is left.

    Args:
        program: of the tree.
        calls: asks models.
        path: of the level in the trace.
        ledger: what it may spend.
        memo: what is remembered; None where nothing is to be.

    Attributes:
        saved: called with the conversation after each turn, if it is set.
    """

    def __init__(
        self,
        program: Program,
        calls: Calls,
        path: Path,
        ledger: Ledger,
        memo: Memo | None,
        *,
        depth: int = 0,
    ):
        self.program, self.calls, self.path, self.ledger, self.memo = program, calls, path, ledger, memo
        self.depth = depth
        self.saved: Callable[[Conversation], None] | None = None
        self.model = program.sub_model if depth else program.model
        self.depth_left = max(program.limits.max_depth - depth - 1, 0)
        self.turns = program.limits.max_iterations
        recurse = self._child if self.depth_left else None
        self._subcalls = Subcalls(program.sub_model, calls, ledger, memo, recurse)
        self.functions = functions(self._subcalls, program.tools, self._budget)

    def run(self, environment: Environment, question: str | None, context: str, talk: Conversation) -> Outcome:
        """The turns from where ``talk`` stands.

        Args:
            environment: that was started with :attr:`functions`.
            context: described.

        Raises:
            SandboxDied: the environment is gone.
            PromptTooLong: not even the first turn fits.
        """
        opening = protocol.opening(question, context, self.turns)
        if not talk.messages:
            talk.messages = self._beginning(context, opening)
        try:
            kept = self.ledger.reserve()  # the call that is left for an answer
        except Exhausted as refused:
            return Outcome(refused.status, None, str(refused))
        status, reason = "iterations", "no turn is left (max_iterations)"
        try:
            while talk.turn <= self.turns:
                report(self.program.on_iteration_start, {"path": [*self.path, talk.turn]})
                said, answer, fault = self._turn(environment, talk)
                place = {"path": [*self.path, talk.turn]}
                report(self.program.on_iteration_complete, place | {"reply": said, "error": fault, "answer": answer})
                if answer is not None:
                    return Outcome("answered", answer)
                talk.errors = talk.errors + 1 if fault else 0
                talk.turn += 1
                if talk.errors >= self.program.limits.max_errors:
                    return Outcome("errors", None, f"{talk.errors} turns in a row failed, the last with: {fault}")
                self._compact(talk, opening)
                if self.saved:
                    self.saved(talk)
        except Exhausted as refused:
            status, reason = refused.status, str(refused)
        except PromptTooLong as fault:
            if talk.turn == 1:
                raise
            return Outcome("errors", None, str(fault))
        finally:
            self.ledger.settle(kept)
        return self._forced(environment, talk, status, reason) if status in FORCED else Outcome(status, None, reason)

    def _beginning(self, context: str, opening: str) -> list[dict[str, str]]:
        rules = protocol.system(
            self.program.limits,
            context,
            self.program.tools,
            recursive=self.depth_left > 0,
            template=self.program.system_prompt,
        )
        return [{"role": "system", "content": rules}, {"role": "user", "content": opening}]

    def _turn(self, environment: Environment, talk: Conversation) -> tuple[str | None, str | None, str | None]:
        """One turn: the reply, the answer if it gave one, and what went wrong in it. Raises Exhausted."""
        self._turns_left, self._cells = self.turns - talk.turn, 0
        try:
            said = self._ask(talk, "turn", (*self.path, talk.turn))
        except ModelFailed as fault:
            return None, None, str(fault)
        spoken, answer, fault = protocol.read(said or ""), None, None
        cells: list[Shown] = []
        for code in spoken.blocks:
            cells.append(self._cell(environment, code, talk))
            answer, fault = cells[-1].answer, cells[-1].error
            if answer is not None:
                return said, answer, None
            if fault is not None:
                break
        shown = [protocol.output(cells)] if cells else []
        if len(cells) < len(spoken.blocks):
            shown.append(f"The {len(spoken.blocks) - len(cells)} blocks after it were not run.")
        elif spoken.variable is not None and fault is None:
            cell = self._cell(environment, _final_var(spoken.variable), talk)
            answer, fault = cell.answer, cell.error
            shown.append(f"FINAL_VAR: {fault}")
        elif spoken.final is not None and fault is None:
            answer = self._meant(environment, spoken.final)
        elif not cells:
            fault = protocol.NO_CODE if (said or "").strip() else protocol.NO_TEXT
            shown.append(fault)
        if answer is None:
            shown.append(protocol.turn(min(talk.turn + 1, self.turns), self.turns))
            talk.messages += [
                {"role": "assistant", "content": said or "(no text)"},
                {"role": "user", "content": "\n\n".join(shown)},
            ]
        return said, answer, fault

    def _budget(self) -> dict[str, Any]:
        calls, tokens = self.ledger.left()
        return {"calls": calls, "tokens": tokens, "turns": self._turns_left, "depth": self.depth_left}

    def _ask(self, talk: Conversation, role: str, path: Path) -> str | None:
        shown = {"role": role, "messages": talk.messages[talk.sent :]}
        reply = self.calls.ask(Request(self.model, talk.messages, path, shown, "turn"), self.ledger)
        talk.sent = len(talk.messages)
        return reply.text

    def _cell(self, environment: Environment, code: str, talk: Conversation) -> Shown:
        """Runs a block and writes it down."""
        self._cells += 1
        path = (*self.path, talk.turn, self._cells)
        notes = self._subcalls.begin(path)
        cell = self.calls.as_recorded(path, environment.execute(code))
        shown = Shown(cell.stdout, cell.error, notes, cell.answer)
        self.calls.trace.add("cell", path, code=code, **dataclasses.asdict(shown))
        return shown

    def _meant(self, environment: Environment, text: str) -> str:
        """``FINAL(name)`` outside of code means the variable, where there is one that holds data."""
        if text.isidentifier() and text[0] != "_" and text not in prelude.NAMES:
            cell = environment.execute(f"if type({text}).__name__ not in {NO_ANSWER}:\n    {_final_var(text)}")
            if cell.answer is not None:
                return cell.answer
        return text

    def _compact(self, talk: Conversation, opening: str) -> None:
        """Puts a summary in the place of a conversation that has grown too long."""
        if self.program.compaction is None or len(talk.messages) <= 2 or talk.turn > self.turns:
            return
        if protocol.characters(talk.messages) <= self.program.compaction:
            return
        *before, last = talk.messages
        asking = Conversation(
            messages=[*before, last | {"content": f"{last['content']}\n\n{protocol.SUMMARISE}"}],
            sent=talk.sent,
        )
        try:
            summary = self._ask(asking, "compaction", (*self.path, talk.turn - 1, self._cells + 1))
        except ModelFailed:
            return  # the conversation goes on as it is; the trace has the fault
        content = f"{opening}\n\nYour summary of the turns so far:\n{protocol.fenced(summary or '(none)')}"
        line = protocol.turn(talk.turn, self.turns)
        talk.messages = [talk.messages[0], {"role": "user", "content": f"{content}\n\n{line}"}]
        talk.sent = 0

    def _forced(self, environment: Environment, talk: Conversation, status: str, reason: str) -> Outcome:
        """The answer that is asked for when nothing else is left."""
        *before, last = talk.messages
        content = f"{last['content']}\n\n{protocol.FORCED.format(reason=FORCED[status])}"
        talk.messages = [*before, last | {"content": content}]
        try:
            said = self._ask(talk, "final", (*self.path, talk.turn + (status == "calls")))
        except FAULTS as fault:
            return Outcome(status, None, f"{reason}; no answer to force: {fault}")
        spoken = protocol.read(said or "")
        if spoken.variable is not None:
            answer = environment.execute(_final_var(spoken.variable)).answer
        elif spoken.final is not None:
            answer = self._meant(environment, spoken.final)
        else:
            answer = protocol.split(said or "")[1].strip() or None
        return (
            Outcome(status, None, f"{reason}; the forced reply held no answer")
            if answer is None
            else Outcome("forced", answer, reason)
        )

    def _child(self, path: Path, ledger: Ledger, memo: Memo | None, question: str | None, context: Any) -> str:
        """The answer of a recursive call. Raises ModelFailed if there is none."""
        child = Level(self.program, self.calls, path, ledger, memo, depth=self.depth + 1)
        try:
            outcome = child.whole(question, context)
        except (SandboxDied, SandboxUnavailable) as error:
            raise ModelFailed(f"the environment of the recursive call ended: {error}") from error
        if outcome.answer is None:
            raise ModelFailed(f"the recursive call has no answer: {outcome.reason}")
        return outcome.answer

    def whole(self, question: str | None, context: Any) -> Outcome:
        """A child from its start to its end, in an environment of its own."""
        environment = self.program.environment()
        try:
            environment.start({**self.values, "context": context}, self.functions)
            self.begin(question, context)
            return self.end(self.run(environment, question, protocol.described(context), Conversation()))
        finally:
            environment.close()

    @property
    def values(self) -> dict[str, Any]:
        """The tools that are data."""
        return {name: tool for name, tool in self.program.tools.items() if not callable(tool)}

    def begin(self, question: str | None, context: Any, **root: Any) -> None:
        """Writes the start of a level down."""
        self.calls.trace.add(
            "run",
            self.path,
            question=question,
            about=protocol.described(context),
            **about(context),
            depth=self.depth,
            **{"model": name_of(self.model), **root},
        )

    def end(self, outcome: Outcome) -> Outcome:
        """Writes the end of a level down."""
        self.calls.trace.add("end", self.path, **dataclasses.asdict(outcome))
        return outcome


def _final_var(name: str) -> str:
    return f"FINAL_VAR({json.dumps(name)})"
