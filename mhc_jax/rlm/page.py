"""The trace of a completion as one page of HTML that needs nothing else: no script, no font, no network.

All that a model, an environment or a document said is hostile: it is escaped, and the page forbids itself everything
but its own style.
"""

import collections
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mhc_jax.rlm.protocol import shorten, split
from mhc_jax.rlm.trace import Event, Trace, Usage, write

# Characters that are shown of one text; the trace has all of it.
SHOWN = 6000
# Of the line that stands for a text before it is opened.
LINE = 60

STYLE = """
:root{--ink:#1c2024;--dim:#667;--paper:#fff;--line:#d9dee4;--tint:#f4f6f8;--mark:#2a6f97;--bad:#b3261e;--good:#2e7d4f}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7ea;--dim:#9aa3ad;--paper:#15181b;--line:#333a41;--tint:#1e2327;
--mark:#7fb8d8;--bad:#f2847c;--good:#7cc79a}}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.2rem 1rem 4rem}
h1{font-size:1.25rem;line-height:1.3;margin:0 0 .6rem;overflow-wrap:anywhere}
.answer{border-left:4px solid var(--good);background:var(--tint);padding:.6rem .8rem;margin:.6rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:22rem;overflow-y:auto}
.answer.none,.answer.forced{border-color:var(--bad)}
.dim,summary small{color:var(--dim);font-size:.85em}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.8rem;margin:1rem 0}
dt{color:var(--dim);font-size:.8rem}
dd{margin:0;font-variant-numeric:tabular-nums}
.bar{height:5px;background:var(--line);border-radius:3px;margin-top:.2rem}
.bar i{display:block;height:100%;border-radius:3px;background:var(--mark)}
details{border-left:2px solid var(--line);padding:0 0 0 .7rem;margin:.45rem 0}
details.child{border-color:var(--mark)}
details.failed{border-color:var(--bad)}
summary{cursor:pointer;overflow-wrap:anywhere}
summary b{font-weight:600}
pre{margin:.35rem 0;padding:.55rem .7rem;background:var(--tint);border-radius:4px;overflow:auto;max-height:22rem;
font:12.5px/1.45 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
pre.code{border-left:3px solid var(--mark)}
pre.error{border-left:3px solid var(--bad)}
h2{font-size:.8rem;font-weight:600;color:var(--dim);margin:.6rem 0 0}
@media(max-width:34rem){main{padding:.8rem .6rem 3rem}details{padding-left:.45rem}}
"""
FORBIDS = "default-src 'none'; style-src 'unsafe-inline'"


def save(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Writes the page of a trace."""
    write(Path(path), render(trace).encode())


def render(trace: Trace) -> str:
    """The page. Raises ValueError for a trace that holds no run."""
    inside = collections.defaultdict(list)
    ends: dict[tuple[int, ...], Event] = {}
    for event in trace.events:
        path = tuple(event["path"])
        if event["kind"] == "end":
            ends[path] = event
        elif path or event["kind"] == "run":
            inside[path[:-1] if path else None].append(event)
    if not inside[None]:
        raise ValueError("the trace holds no run")
    (root,) = inside[None]
    question = root["question"] or "The question is in the context"
    body = [
        f"<h1>{_text(shorten(question, SHOWN))}</h1>",
        f'<div class="dim">{_text(root["about"])}; {_text(root["environment"])}; {_text(root["model"])}</div>',
        _ending(ends.get(())),
        _budget(trace.usage(), root["limits"]),
        *(_turn(event, inside, ends, trace) for event in inside[()]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{FORBIDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(_line(question))}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(body)}</main></body></html>\n"
    )


def _ending(end: Event | None) -> str:
    if end is None:
        return '<div class="answer none">The run did not end.</div>'
    kind = {"answered": "", "forced": " forced"}.get(end["status"], " none")
    reason = f'<div class="dim">{_text(end["status"])}: {_text(end["reason"])}</div>' if end["reason"] else ""
    answer = "No answer." if end["answer"] is None else shorten(end["answer"], SHOWN)
    return f'<div class="answer{kind}">{_text(answer)}</div>{reason}'


def _budget(usage: Usage, limits: Mapping[str, Any]) -> str:
    about = " (estimated)" if usage.estimated else ""
    rows = [
        ("model calls", f"{usage.calls:,}", usage.calls, limits.get("max_llm_calls")),
        (f"tokens{about}", f"{usage.tokens:,}", usage.tokens, limits.get("max_tokens")),
        *([("answered from memory", f"{usage.memoised:,}", None, None)] if usage.memoised else []),
        *([("cost", f"{usage.cost:g}", None, None)] if usage.cost is not None else []),
        *(
            (f"calls of {name}", f"{count:,}", None, None)
            for name, count in usage.models.items()
            if len(usage.models) > 1
        ),
    ]
    return "<dl>" + "".join(_amount(*row) for row in rows) + "</dl>"


def _amount(name: str, value: str, used: int | None, limit: int | None) -> str:
    bar = ""
    if limit is not None and used is not None:
        value += f" of {limit:,}"
        bar = f'<div class="bar"><i style="width:{min(100 * used / limit, 100):.1f}%"></i></div>'
    return f"<div><dt>{_text(name)}</dt><dd>{value}</dd>{bar}</div>"


def _turn(event: Event, inside: Mapping[Any, Sequence[Event]], ends: Mapping[Any, Event], trace: Trace) -> str:
    path = tuple(event["path"])
    if event["kind"] == "cell":
        return _cell(event, inside, ends, trace)
    said = event.get("error") or event.get("reply") or "(no text)"
    usage = trace.usage(path)
    name = {"turn": f"Turn {path[-1]}", "final": "Asked for the answer", "plain": "Asked"}.get(event["role"], "Summary")
    cost = f"{_counted(usage.calls, 'call')}, {usage.tokens:,} tokens"
    cells = [_turn(part, inside, ends, trace) for part in inside[path]]
    shown = split(said)[1].strip() if cells else said  # its code stands in the cells
    parts = [_pre(shown, "error" if "error" in event else "")] if shown else []
    return _details(name, cost, said, [*parts, *cells], failed="error" in event, open=True)


def _cell(event: Event, inside: Mapping[Any, Sequence[Event]], ends: Mapping[Any, Event], trace: Trace) -> str:
    called = inside[tuple(event["path"])]
    parts = [_pre(event["code"], "code")]
    parts += [_call(part) if part["kind"] == "call" else _child(part, inside, ends, trace) for part in called]
    if event["stdout"]:
        parts += ["<h2>Output</h2>", _pre(event["stdout"])]
    if event["error"] is not None:
        parts.append(_pre(event["error"], "error"))
    parts += [f'<div class="dim">{_text(note)}</div>' for note in event["notes"]]
    calls = _counted(len(called), "sub-call") if called else ""
    name = "Code with an answer" if event["answer"] is not None else "Code"
    return _details(name, calls, event["code"], parts, failed=event["error"] is not None, open=True)


def _call(event: Event) -> str:
    failed = "error" in event
    said = event.get("error") or event["reply"] or "(no text)"
    tokens = event.get("prompt_tokens", 0) + event.get("completion_tokens", 0)
    how = "from memory" if event["memo"] else f"{event['model']}, {tokens:,} tokens"
    parts = ["<h2>Prompt</h2>", _pre(event["prompt"]), "<h2>Reply</h2>", _pre(said, "error" if failed else "")]
    return _details(f"Call {event['path'][-1]}", how, f"{_line(event['prompt'])} → {_line(said)}", parts, failed=failed)


def _child(event: Event, inside: Mapping[Any, Sequence[Event]], ends: Mapping[Any, Event], trace: Trace) -> str:
    path = tuple(event["path"])
    usage = trace.usage(path)
    parts = [
        f'<div class="dim">{_text(event["about"])}</div>',
        _ending(ends.get(path)),
        *(_turn(part, inside, ends, trace) for part in inside[path]),
    ]
    about = f"depth {event['depth']}, {_counted(usage.calls, 'call')}, {usage.tokens:,} tokens"
    return _details("Recursive call", about, _line(event["question"] or event["about"]), parts, kind="child")


def _details(
    name: str, small: str, said: str, parts: Sequence[str], *, kind: str = "", failed: bool = False, open: bool = False
) -> str:
    names = " ".join(filter(None, [kind, "failed" if failed else ""]))
    head = f"<b>{_text(name)}</b> <small>{_text(small)}</small> {'' if open else _text(said)}"
    return f'<details class="{names}"{" open" if open else ""}><summary>{head}</summary>{"".join(parts)}</details>'


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _pre(text: str, kind: str = "") -> str:
    return f'<pre class="{kind}">{_text(shorten(text, SHOWN))}</pre>'


def _line(text: str) -> str:
    line = " ".join(text[: 4 * LINE].split())
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"


def _text(text: str) -> str:
    """Escaped; what no document may hold is shown as a question mark."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
    return html.escape(plain)
