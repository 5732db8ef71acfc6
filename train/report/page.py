"""A self-contained HTML report on a run: the model, its training, and its residual streams."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mhc_jax import diagnostics
from train.config import RunConfig
from train.report import figures, markup
from train.report.losses import draw_losses
from train.report.quantities import Record, present, rows
from train.storage.folder import METRICS_FILE, read_metrics, read_summary
from train.terminal.table import text

UNTAPPED = "No stream statistics: no site taps h_pre, h_post or h_res. A plain residual has a single stream."
WEIGHTS = {
    "h_pre": ("H_pre: what is read", "How much of each stream (row) the branch of each site reads."),
    "h_post": ("H_post: what is written", "How much of the branch's output each stream (row) receives."),
    "h_res": (
        "H_res: what is mixed",
        "Row i is what stream i consists of after the site, column j is where stream j went. "
        "Where the diagonal alone stands out, every stream stays by itself.",
    ),
    "component_share": (
        "Components: what is weighed",
        "Mean weight over tokens of each orthogonal matrix. Row a.b is matrix b of what is read (0), mixed (1) and "
        "written (2).",
    ),
    "rank_share": ("Streams that tokens keep", "Share of tokens by the last stream (row) that they keep."),
}
MOST_POINTS = 200


class Profile(Protocol):
    """Time by part, see :mod:`train.measure.parts`."""

    rows: Sequence[Mapping[str, Any]]
    memory: Sequence[Mapping[str, Any]]

    @property
    def note(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Findings:
    """The subject of a report.

    Attributes:
        name: name of the run.
        config: its configuration.
        parameters, cost: tables, see :mod:`train.measure.cost`; no cost if it was not measured.
        profile: time by part; None if it was not measured.
        streams: the statistics of its parameters; None if no site taps its coefficients.
        tokens: description of the tokens that they were averaged over.
        policies: a table of the same statistics under several numeric policies.
        summary: ``summary.json``; empty for a run that is not finished.
        lines: lines of ``metrics.jsonl``.
    """

    name: str
    config: RunConfig
    parameters: Sequence[Mapping[str, Any]]
    cost: Sequence[Mapping[str, Any]] = ()
    profile: Profile | None = None
    streams: Record | None = None
    tokens: str = ""
    policies: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lines: Sequence[Mapping[str, Any]] = ()


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """``summary.json`` and the lines of ``metrics.jsonl``, as far as they are there.

    Raises:
        ConfigError: one of them is damaged.
    """
    return read_summary(folder) or {}, read_metrics(folder / METRICS_FILE)


def render(findings: Findings) -> str:
    """The whole page."""
    parts = {
        "Losses": _losses(findings),
        "Streams": _streams(findings),
        "Streams through depth": _depth(findings),
        "Streams over training": _training(findings),
        "Parameters": [markup.table(findings.parameters)],
        "Cost of a training step": [markup.table(findings.cost)] if findings.cost else [],
        "Time by part": _profile(findings),
        "Configuration": [markup.settings(findings.config.to_dict())],
    }
    parts = {title: content for title, content in parts.items() if content}
    sections = [markup.section(title, *content) for title, content in parts.items()]
    return markup.page(findings.name, "\n".join([_header(findings, list(parts)), *sections]))


def _header(findings: Findings, titles: Sequence[str]) -> str:
    summary = findings.summary
    words = [*findings.config.model.description, f"data {findings.config.data.label}"]
    found = {
        "validation loss": summary.get("val_loss"),
        "perplexity": summary.get("val_ppl"),
        "bits per byte": summary.get("val_bpb"),
        "parameters": findings.parameters[-1]["count"],
        "training tokens": summary.get("tokens"),
        "tokens per second": summary.get("tokens_per_second"),
        "minutes": summary["seconds"] / 60 if "seconds" in summary else None,
    }
    tiles = {name: text(value) for name, value in found.items() if value is not None}
    return markup.header(findings.name, " · ".join(words), titles, tiles)


def _losses(findings: Findings) -> list[str]:
    lines = [line for line in findings.lines if line.get("loss") is not None or line.get("val_loss") is not None]
    if not lines:
        return []
    unigram = findings.summary.get("unigram_ppl")

    def draw(narrow: bool):
        figure = figures.new_figure(*(4.2, 3.2) if narrow else (11, 3.8))
        data = findings.config.data
        per_step = data.batch_size * data.seq_len
        draw_losses(figure.subplots(), lines, {"unigram": math.log(unigram)} if unigram else {}, per_step)
        return figure

    meaning = (
        "Mean negative log likelihood of a token in nats, lower is better. The dashed line is a model that knows "
        "only how often each token occurs."
        if unigram
        else "Mean negative log likelihood of a token in nats, lower is better."
    )
    return [markup.paragraph(meaning), markup.picture(draw, "Training and validation loss by step")]


def _streams(findings: Findings) -> list[str]:
    if findings.streams is None:
        return [markup.paragraph(UNTAPPED)]
    sites = diagnostics.site_names(findings.config.model)
    parts = [
        markup.paragraph(
            f"Weights of every site, averaged over {findings.tokens}. A layer has a site for its sequence mixer and, "
            "in most models, one for its channel mixer. Hold the pointer over a field to read its value."
        )
    ]
    for name, (title, meaning) in WEIGHTS.items():
        if name not in findings.streams:
            continue
        if name == "h_res":
            h_res = np.asarray(findings.streams[name], float)
            scale = figures.colours(h_res, most=1.0)
            drawing = markup.matrices(h_res, sites, scale)
        else:
            image, streams = figures.strip(findings.streams[name])
            scale = figures.colours(image)
            row = figures.STRIPS[name][1]
            drawing = markup.strip(image, streams, sites, scale, title.split(":")[0], row)
            if "." in streams[0] and name.startswith("h_"):
                meaning += " Row a.b is stream b of view, branch or part a: there are several at a site."
        parts += [markup.subheading(title), markup.paragraph(meaning), markup.colour_bar(scale), drawing]
    return parts


def _depth(findings: Findings) -> list[str]:
    if findings.streams is None:
        return []
    recorded, sites = findings.streams, diagnostics.site_names(findings.config.model)

    def draw(narrow: bool):
        count = len(figures.panels(recorded))
        rows, columns = (count, 1) if narrow else (math.ceil(count / 3), 3)
        figure = figures.new_figure(*(4.2, 2.2 * rows) if narrow else (11, 2.6 * rows))
        figures.draw_depth(figure.subplots(rows, columns), recorded, sites)
        return figure

    meanings = {quantity.title: quantity.meaning for quantity in present(recorded)}
    return [
        markup.picture(draw, "Statistics of the streams by layer"),
        markup.definitions(meanings),
        markup.table(rows(recorded, sites)),
        *_policies(findings),
    ]


def _policies(findings: Findings) -> list[str]:
    if not findings.policies:
        return []
    words = "The same model under other numeric policies: the extremes of all sites, and the mean number of streams."
    return [markup.subheading("Numeric policies"), markup.paragraph(words), markup.table(findings.policies)]


def _profile(findings: Findings) -> list[str]:
    profile = findings.profile
    if profile is None:
        return []

    def draw(narrow: bool):
        figure = figures.new_figure(4.2 if narrow else 11, 0.3 * len(profile.rows) * (2 if narrow else 1) + 1)
        figures.draw_parts(figure, profile.rows, columns=1 if narrow else 2)
        return figure

    return [
        markup.paragraph(profile.note),
        markup.picture(draw, "Time of every part of a training step and of a decoding step"),
        markup.table(profile.rows),
        markup.table(profile.memory),
    ]


def _training(findings: Findings) -> list[str]:
    logged = [line for line in findings.lines if line.get("streams")]
    if not logged:
        return []
    some = logged[:: math.ceil(len(logged) / MOST_POINTS)]
    steps, records = [line["step"] for line in some], [line["streams"] for line in some]

    sites = diagnostics.site_names(findings.config.model)

    def draw(narrow: bool):
        columns = 1 if narrow else 3
        high = 1.75 * math.ceil(len(present(records[0])) / columns)
        figure = figures.new_figure(4.2 if narrow else 11, high + 0.5)
        figures.draw_steps(figure, steps, records, sites, columns=columns)
        return figure

    return [
        markup.paragraph("The same quantities during training, on a few validation tokens: a line for each site."),
        # Vector graphics of very many lines are larger than their pixels.
        markup.picture(draw, "Statistics of the streams by step", raster=len(sites) * len(some) > 2000),
    ]
