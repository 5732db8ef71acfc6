"""A folder for Hugging Face transformers that carries its own code: the PyTorch mirror, as files beside the weights.

Transformers copies such files one by one and imports them as siblings, so the mirror's packages are flattened:
``torch_ref.nn.lm`` becomes ``torch_ref_nn_lm.py``.
"""

import ast
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mhc_jax import interop
from mhc_jax.config import ConfigError
from mhc_jax.functional import Params
from mhc_jax.interop.original import check_language_model
from mhc_jax.interop.store import REMOTE_CODE, write_folder
from mhc_jax.nn.model import ModelConfig

ROOT = Path(__file__).parents[2]
PACKAGE = "torch_ref"
MODEL, CONFIGURATION = (f"{PACKAGE}.huggingface.{name}_mhc" for name in ("modeling", "configuration"))


def save_remote_code(
    directory: str | os.PathLike[str], config: ModelConfig, params: Params, ids: Mapping[str, int]
) -> None:
    """Writes a folder that ``AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)`` loads.

    Args:
        directory: new or empty.
        ids: fields like ``eos_token_id``.

    Raises:
        ConfigError: ``params`` are not those of ``config``, a model that predicts no next token, or a part of it that
            the mirror does not have.
    """
    config.validate()
    check_language_model(config)
    config.check_next_token()
    known = _registered()
    for part in config.parts():
        if part.axis and part.kind and (part.axis, part.kind) not in known:
            raise ConfigError(
                f"transformers cannot load this model: its {part.axis} {part.kind!r} is from outside, and the folder's "
                f"code is {PACKAGE} alone"
            )
    text = json.dumps(_fields(config, ids), indent=2) + "\n"
    write_folder(directory, interop.to_torch(config, params), text, ours=lambda _: False)
    for name, code in code_files().items():
        Path(directory, name).write_text(code, encoding="utf-8")


def _fields(config: ModelConfig, ids: Mapping[str, int]) -> dict[str, Any]:
    """The contents of ``config.json``: the model's record, and what tools of transformers look for beside it."""
    record = config.to_dict()
    return {
        "model_type": REMOTE_CODE,
        "architectures": ["MHCForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_flat(CONFIGURATION)}.MHCConfig",
            "AutoModelForCausalLM": f"{_flat(MODEL)}.MHCForCausalLM",
        },
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "hidden_size": record["width"],
        "num_hidden_layers": record["layers"],
        "num_attention_heads": record["mixer"].get("heads", 1),
        "tie_word_embeddings": False,
        **ids,
        REMOTE_CODE: record,
    }


def code_files() -> dict[str, str]:
    """Name and text of the files: the model, and the modules of the mirror that it imports, one way or another."""
    codes = {_flat(name): _rewritten(name) for name in _needed()}
    # Transformers copies what it finds imported by name, and not all releases look beyond the first file.
    first, mark = _flat(MODEL), f"from .{_flat(CONFIGURATION)} import"
    before, after = codes[first].split(mark)
    found = "".join(f"from .{name} import __name__ as _\n" for name in codes if name != first)
    codes[first] = f"{before}{found}{mark}{after}"
    return {f"{name}.py": code for name, code in codes.items()}


def _flat(module: str) -> str:
    """Its name as a sibling; the model and its configuration keep theirs."""
    return module.rpartition(".")[2] if module in (MODEL, CONFIGURATION) else module.replace(".", "_")


@functools.cache
def _sources() -> dict[str, str]:
    """The mirror's modules and their texts."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "tests" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def _imports(module: str) -> Iterator[tuple[ast.ImportFrom, list[ast.alias], list[ast.alias]]]:
    """Statements that import from the mirror; what they import of a module, and as modules."""
    for node in ast.walk(ast.parse(_sources()[module])):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            modules = [alias for alias in node.names if f"{node.module}.{alias.name}" in _sources()]
            yield node, [alias for alias in node.names if alias not in modules], modules


def _needed() -> list[str]:
    """The model's module and those that it imports, one way or another; with a module, the packages it lies in."""
    found, waiting = set(), [MODEL]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        for node, names, modules in _imports(module):
            waiting += [str(node.module)] if names else []
            waiting += [f"{node.module}.{alias.name}" for alias in modules]
        parts = module.split(".")
        packages = [".".join(parts[:n]) for n in range(2, len(parts))]
        waiting += [package for package in packages if any(_imports(package))]
    return sorted(found)


def _rewritten(module: str) -> str:
    """The module's text with its siblings imported as such."""
    lines = _sources()[module].splitlines()
    for node, names, modules in sorted(_imports(module), key=lambda found: -found[0].lineno):
        new = [f"from .{_flat(str(node.module))} import {', '.join(map(_spelled, names))}"] if names else []
        for alias in modules:
            new.append(f"from . import {_flat(f'{node.module}.{alias.name}')} as {alias.asname or alias.name}")
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in new]
    return "\n".join(lines) + "\n"


def _spelled(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


@functools.cache
def _registered() -> frozenset[tuple[str, str]]:
    """Axes and kinds of the parts in the files, read off their decorators: PyTorch need not be there."""
    return frozenset(
        (node.args[0].value, node.args[1].value)
        for module in _needed()
        for node in ast.walk(ast.parse(_sources()[module]))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "register"
        and all(isinstance(argument, ast.Constant) for argument in node.args)
    )
