"""Training and everything around it. The modules that stand here are commands, or serve them.

``train.run(config)`` trains from Python: see :func:`train.loop.run.run`.
"""

from typing import TYPE_CHECKING, Any

from train.terminal import loading

if TYPE_CHECKING:
    from train.loop.run import Result as Result
    from train.loop.run import run as run

loading.begins(__name__)


def __getattr__(name: str) -> Any:
    # Not at once: a command is to be heard while JAX is still loading.
    if name in ("run", "Result"):
        from train.loop import run as loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
