"""What models have said to sub-calls, so that they need not be asked twice."""

import hashlib
import json
from collections.abc import Iterable, Mapping

from mhc_jax.rlm.models import Messages, Reply
from mhc_jax.rlm.trace import Event


class Memo:
    """Replies by model and prompt. A fork reads what was known when it was made, so that what children at the same
    time find does not depend on which of them is faster."""

    def __init__(self, known: Mapping[str, Reply] | None = None):
        self._known = dict(known or {})

    def fork(self) -> "Memo":
        return Memo(self._known)

    def merge(self, other: "Memo") -> None:
        self._known = other._known | self._known

    def recall(self, events: Iterable[Event]) -> None:
        """Knows the replies to the sub-calls of a trace."""
        for event in events:
            if event["kind"] == "call" and "reply" in event and not event["memo"]:
                messages = [{"role": "user", "content": event["prompt"]}]
                self.put(key_of(event["model"], messages), Reply(event["reply"]))

    def get(self, key: str) -> Reply | None:
        return self._known.get(key)

    def put(self, key: str, reply: Reply) -> None:
        self._known[key] = reply


def key_of(model: str, messages: Messages) -> str:
    """The same for the same name of a model and messages, in every process."""
    return hashlib.sha256(json.dumps([model, list(messages)]).encode()).hexdigest()
