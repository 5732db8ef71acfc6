"""A run between two turns on disk, from which it goes on after an interruption."""

import copy
import dataclasses
import io
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any, Self

from mhc_jax.config import ConfigError
from mhc_jax.rlm.environments.base import Environment
from mhc_jax.rlm.program import Conversation
from mhc_jax.rlm.trace import Event, Trace, write

VERSION = 1


@dataclasses.dataclass
class State:
    """What a run needs to go on.

    Attributes:
        settings: of the run that must be the same when it goes on.
        question, context: of the completion; the context is None where the dump holds it.
        about: the context in words.
        history: questions and answers before this one.
        events: of the trace so far, those of a turn that has begun included: what was replied is not asked for again.
        talk: the conversation after the last turn that is over.
        elapsed: seconds.
        dump: the session of the environment after that turn; None where it has no such thing, and all turns are run
            anew with the replies that are in the trace.
    """

    settings: dict[str, Any]
    question: str | None
    context: Any
    about: str
    history: list[dict[str, Any]]
    events: list[Event]
    talk: Conversation = dataclasses.field(default_factory=Conversation)
    elapsed: float = 0.0
    dump: bytes | None = None

    @property
    def has_session(self) -> bool:
        """Whether a run goes on after its last turn, not from its beginning."""
        return self.dump is not None

    def trace(self) -> Trace:
        """Up to the turn that is next."""
        over = (event for event in self.events if event["kind"] != "end" or event["path"])
        return Trace(event for event in over if not event["path"] or event["path"][0] < self.talk.turn)

    def replies(self) -> dict[tuple[int, ...], Event]:
        """What need not be asked again; what failed is."""
        return {path: event for path, event in Trace(self.events).replies().items() if "reply" in event}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "dump"}
        text = json.dumps({"version": VERSION, **fields, "talk": dataclasses.asdict(self.talk)})
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("state.json", text)
            if self.dump is not None:
                archive.writestr("session.bin", self.dump)
        write(Path(path), content.getvalue())


class Keeper:
    """Keeps the state of a run that is under way in a file; removes it once the run is ``done``.

    Raises:
        ConfigError: the file of a ``new`` run is there already, or cannot be written.
    """

    def __init__(self, path: Path, state: State, trace: Trace, environment: Environment, *, new: bool):
        self._path, self._state, self._trace, self._environment = path, state, trace, environment
        self._new, self._failed = new, False
        self._context, self._start = state.context, time.monotonic() - state.elapsed
        self.done = False

    def keep(self, talk: Conversation) -> None:
        """Saves what stands after a turn; what stood before it stays if the session cannot be had."""
        kept = copy.deepcopy(talk)
        dump = self._environment.dump()
        context = self._context if dump is None else None
        # At once, so that an interruption leaves no conversation beside the session of another turn.
        self._state = dataclasses.replace(self._state, talk=kept, dump=dump, context=context)
        self._write()

    def _write(self) -> None:
        self._state.events, self._state.elapsed = self._trace.events, time.monotonic() - self._start
        try:
            self._state.write(self._path)
        except OSError as error:
            self._failed = True
            if self._new:
                self._path.unlink(missing_ok=True)
            raise _unwritten(self._path, error) from error
        self._new = False

    def __enter__(self) -> Self:
        if self._new:  # two runs at the same time do not share a file
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.open("xb").close()
            except OSError as error:
                check_free(self._path)
                raise _unwritten(self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.done:
            self._path.unlink(missing_ok=True)
        elif not self._failed:
            self._write()  # the variables are those after the last turn; the events are all


def check_free(path: str | os.PathLike[str]) -> None:
    """Raises ConfigError for a file that is there already."""
    if Path(path).exists():
        raise ConfigError(f"{path} holds a run already: go on with resume(), or remove it")


def _unwritten(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the run cannot be saved to {path}: {error.strerror}")


def read(path: str | os.PathLike[str]) -> State:
    """What :meth:`State.write` has written. Raises ConfigError for another file."""
    try:
        if not Path(path).stat().st_size:
            raise ConfigError(f"{path} is empty: its run was stopped before it began; remove it and run again")
        with zipfile.ZipFile(path) as archive:
            fields = json.loads(archive.read("state.json"))
            dump = archive.read("session.bin") if "session.bin" in archive.namelist() else None
        version = fields.pop("version")
        if version != VERSION:
            raise ConfigError(f"{path} was written by another version ({version}, this is {VERSION})")
        return State(**fields | {"talk": Conversation(**fields["talk"]), "dump": dump})
    except FileNotFoundError:
        raise ConfigError(f"there is no saved run {path}") from None
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no saved run: {error}") from None
