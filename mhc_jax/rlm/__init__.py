"""Recursive language models: a model that reads a long context by writing code (Zhang et al., arXiv 2512.24601).

``RLM(model).completion(context, question)``; see docs/rlm.md. A model is a function from messages to a text, and the
context a text of any length: this package knows no tokenizer and computes nothing itself.
"""

from mhc_jax.rlm.document import Document
from mhc_jax.rlm.environments.base import SandboxDied, SandboxUnavailable, ToolError
from mhc_jax.rlm.limits import Limits
from mhc_jax.rlm.loop import RLM
from mhc_jax.rlm.models import ModelFailed, PromptTooLong, Reply, Scripted
from mhc_jax.rlm.program import Result
from mhc_jax.rlm.replay import Diverged, replay
from mhc_jax.rlm.trace import Trace, Usage

__all__ = [
    "RLM",
    "Diverged",
    "Document",
    "Limits",
    "ModelFailed",
    "PromptTooLong",
    "Reply",
    "Result",
    "SandboxDied",
    "SandboxUnavailable",
    "Scripted",
    "ToolError",
    "Trace",
    "Usage",
    "replay",
]
