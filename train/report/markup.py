"""Pieces of an HTML page that needs nothing else: tables, heat maps whose values show on hover, inline pictures."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from train.report.figures import Theme, is_bright, png, svg
from train.terminal.table import text

STYLE = Path(__file__).with_name("report.css")
# Windows in which pictures side by side cannot be read.
NARROW = "(max-width: 720px)"


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def header(title: str, words: str, sections: Sequence[str], values: Mapping[str, str]) -> str:
    """The subject of the page, links to its sections, and the most important numbers."""
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in sections)
    numbers = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n{paragraph(words)}\n<nav>{links}</nav>\n"
        f'<dl class="tiles">{numbers}</dl>\n</header>'
    )


def section(title: str, *parts: str) -> str:
    """A card with a heading that the page can link to."""
    return f'<section id="{anchor(title)}">\n<h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def anchor(title: str) -> str:
    return "-".join(title.lower().split())


def paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def subheading(words: str) -> str:
    return f"<h3>{escape(words)}</h3>"


def definitions(meanings: Mapping[str, str]) -> str:
    """Definitions of the terms, one sentence each."""
    parts = (f"<div><dt>{escape(name)}</dt><dd>{escape(meaning)}</dd></div>" for name, meaning in meanings.items())
    return f'<dl class="meanings">{"".join(parts)}</dl>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table like :func:`train.terminal.table.markdown`; long tables scroll under their header."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    kinds = {column: _kind([row.get(column) for row in rows]) for column in columns}
    head = "".join(f"<th{kinds[column]}>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        f"<tr>{''.join(f'<td{kinds[column]}>{escape(text(row.get(column)))}</td>' for column in columns)}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="values"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


def _kind(column: Sequence[Any]) -> str:
    """Numbers stand to the right, long texts may be broken."""
    if all(isinstance(value, int | float | None) for value in column):
        return ' class="number"'
    return ' class="long"' if max(len(str(value)) for value in column) > 40 else ""


def settings(record: Mapping[str, Any]) -> str:
    """A configuration: nested lists of names and values."""

    def entry(name: str, value: Any) -> str:
        if isinstance(value, Mapping):
            return f"<div class=group><dt>{escape(name)}</dt><dd>{settings(value)}</dd></div>"
        return f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"

    return f'<dl class="settings">{"".join(entry(name, value) for name, value in record.items())}</dl>'


def picture(draw: Callable[[bool], Figure], words: str, *, raster: bool = False) -> str:
    """A figure for wide and for narrow windows, for a light and for a dark page.

    Args:
        draw: draws it; its argument says whether the window is narrow.
        words: description of the plot for readers who cannot see it.
        raster: whether to draw pixels, for plots of very many lines.
    """
    kind, render = ("image/png", png) if raster else ("image/svg+xml", svg)

    def data(narrow: bool, theme: Theme) -> str:
        return f"data:{kind};base64,{base64.b64encode(render(lambda: draw(narrow), theme)).decode()}"

    dark = "(prefers-color-scheme: dark)"
    sources = {
        f"{NARROW} and {dark}": data(True, "dark"),
        NARROW: data(True, "light"),
        dark: data(False, "dark"),
    }
    variants = "".join(f'<source media="{media}" srcset="{source}">' for media, source in sources.items())
    return f'<picture>{variants}<img src="{data(False, "light")}" alt="{escape(words)}"></picture>'


def colour_bar(scale: ScalarMappable) -> str:
    """The colours of a scale from its least to its greatest value."""
    low, high = scale.get_clim()
    stops = ", ".join(to_hex(scale.to_rgba(value)) for value in np.linspace(low, high, 9))
    return (
        f'<p class="bar"><span>{low:.3g}</span><i style="background:linear-gradient(90deg, {stops})"></i>'
        f"<span>{high:.3g}</span></p>"
    )


def strip(
    image: np.ndarray,
    streams: Sequence[str],
    sites: Sequence[str],
    scale: ScalarMappable,
    name: str,
    axis: str = "stream",
) -> str:
    """A row for each stream, a column for each site; below, the layers, and the kinds of sites if there is room.

    Args:
        axis: what the rows stand for, if not for streams.
    """
    shown = len(sites) <= 16
    rows = []
    title = f'<th class="axis up" rowspan={len(streams)}>{axis}</th>'
    for stream, values in zip(streams, image, strict=True):
        cells = (
            _cell(value, scale, f"{name} of {site}, {axis} {stream}: {value:.4f}", shown=shown)
            for site, value in zip(sites, values, strict=True)
        )
        rows.append(f"<tr>{title}<th>{stream}</th>{''.join(cells)}</tr>")
        title = ""
    layers = list(dict.fromkeys(site.split()[0] for site in sites))
    each, every = len(sites) // len(layers), -(-len(layers) // 24)
    marks = (layer if index % every == 0 else "" for index, layer in enumerate(layers))
    if named := shown and each > 1:
        kinds = "".join(f"<th>{escape(site.split()[1])}</th>" for site in sites)
        rows.append(f"<tr><th></th><th></th>{kinds}</tr>")
    rows.append(f"<tr><th></th><th></th>{''.join(f'<th colspan={each}>{mark}</th>' for mark in marks)}</tr>")
    words = "site: kind and layer" if named else "layer"
    rows.append(f'<tr><th></th><th></th><th class="axis" colspan={len(sites)}>{words}</th></tr>')
    # A column that is narrower than a number scrolls instead.
    width = f"min-width:{min(3 + 2 * len(sites), 32)}rem"
    return f'<div class="wide"><table class="heat strip" style="{width}">{"".join(rows)}</table></div>'


def matrices(h: np.ndarray, sites: Sequence[str], scale: ScalarMappable) -> str:
    """One small square per site, row i for destination stream i, column j for source stream j."""
    shown = len(sites) <= 16 and h.shape[-1] <= 4
    figures = []
    for site, matrix in zip(sites, h, strict=True):
        rows = (
            "".join(
                _cell(value, scale, f"{site}: stream {source} to stream {target}: {value:.4f}", shown=shown)
                for source, value in enumerate(row)
            )
            for target, row in enumerate(matrix)
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        figures.append(f'<figure><figcaption>{escape(site)}</figcaption><table class="heat">{body}</table></figure>')
    grid = f'<div class="grid {"large" if shown else "small"}">{"".join(figures)}</div>'
    return (
        f'<div class="axes"><span class="axis up">to stream</span>{grid}<span></span>'
        '<span class="axis">from stream</span></div>'
    )


def _cell(value: float, scale: ScalarMappable, words: str, *, shown: bool) -> str:
    rgba = scale.to_rgba(value)
    ink = "#000" if is_bright(rgba) else "#fff"
    number = f"{value:.2f}" if shown else ""
    return f'<td style="background:{to_hex(rgba)};color:{ink}" title="{escape(words)}">{number}</td>'
