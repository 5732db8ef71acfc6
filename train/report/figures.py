"""Pictures of the residual streams and of a run: matplotlib figures, as PNG or as SVG that suits its page."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from train.report.quantities import BY_NAME, Quantity, Record, by_site, present

Theme = Literal["light", "dark"]
INK = {"light": "#24292f", "dark": "#d7dde4"}
COLOURS = ("#3b82c4", "#e07b39", "#3f9d6d")
# Line styles of the kinds of sites, in their order within a layer.
STYLES = (
    {"linestyle": "solid", "marker": "o"},
    {"linestyle": "dashed", "marker": "s"},
    {"linestyle": "dashdot", "marker": "^"},
    {"linestyle": "dotted", "marker": "D"},
)
# Quantities that share one plot over depth, where a record has them.
PANELS = {
    "composite gain": ("forward_gain", "backward_gain"),
    "singular values of a site": ("singular_max", "singular_min"),
    "singular values over depth": ("composite_max", "composite_min"),
    "stream cosine": ("stream_cosine",),
    "effective streams": ("effective_streams",),
    "distance of sums from 1": ("row_sum_error", "column_sum_error"),
    "mixing of a site": ("entropy", "identity_distance", "routing_entropy"),
    "least entry of H_res": ("min_entry",),
    "components and streams in use": ("components_used", "rank"),
}
# Shares by site that are drawn as strips, and what their rows stand for.
STRIPS = {
    "h_pre": ("H_pre", "stream"),
    "h_post": ("H_post", "stream"),
    "component_share": ("share of each component", "route.part"),
    "rank_share": ("share of tokens by the last stream that they keep", "stream"),
}
# Large numbers on an axis: 20k, 1.5M, 2G.
COUNTS = EngFormatter(sep="")
# Through depth, for lines: neither end is lost on a light or on a dark page.
DEPTH = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.28, 0.88, 256)))


def colours(values: np.ndarray, *, most: float | None = None) -> ScalarMappable:
    """The colour scale of weights: from 0 up, or both ways from 0 if some are negative.

    Args:
        most: least upper end of the scale.
    """
    top = max(float(np.abs(values).max(initial=0)), most or 0) or 1.0
    if values.min(initial=0) < 0:
        return ScalarMappable(Normalize(-top, top), "coolwarm")
    return ScalarMappable(Normalize(0, top), "viridis")


def strip(weights: Any) -> tuple[np.ndarray, list[str]]:
    """Weights or shares by site as an image (K, S) with one column per site, and the names of its rows.

    A row is a stream, or, for sites that read or write several things, ``"a.b"``: stream b of view, branch or part a.
    """
    x = np.asarray(weights, float)
    # An axis of one entry names nothing, unless it is the only one.
    axes = [size for size in x.shape[1:] if size > 1] or [1]
    return x.reshape(len(x), -1).T, [".".join(map(str, index)) for index in np.ndindex(*axes)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def stream_sheet(recorded: Record, sites: Sequence[str], title: str) -> Figure:
    """One page: weights and shares by site, every quantity over depth, and H_res of each site in rows that wrap."""
    h_res = np.asarray(recorded["h_res"], float)
    strips = [name for name in STRIPS if name in recorded]
    columns = min(len(sites), 8 if len(sites) <= 16 else 16)
    grid_rows = math.ceil(len(sites) / columns)
    tile = 13 / columns
    counts = [len(strip(recorded[name])[1]) for name in strips]
    strip_heights = [1.1 + (0.06 if count <= 8 else 0.12) * count for count in counts]
    panel_rows = math.ceil(len(panels(recorded)) / 3)
    heights = [sum(strip_heights)] * bool(strips) + [2.3 * panel_rows, (tile + 0.25) * grid_rows + 0.3]
    figure = new_figure(13, sum(heights) + 0.4)
    figure.suptitle(title, fontsize=14)
    *for_strips, for_curves, for_grid = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part in for_strips:
        rows = part.subplots(len(strips), 1, squeeze=False, height_ratios=strip_heights)[:, 0]
        for axes, name in zip(rows, strips):
            _draw_strip(axes, *strip(recorded[name]), sites, *STRIPS[name])
    draw_depth(for_curves.subplots(panel_rows, 3), recorded, sites)
    _draw_grid(for_grid, h_res, sites, grid_rows, columns)
    return figure


def _draw_strip(
    axes: Axes, image: np.ndarray, names: Sequence[str], sites: Sequence[str], title: str, rows: str = "stream"
) -> None:
    scale = colours(image)
    axes.imshow(image, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="nearest")
    axes.figure.colorbar(scale, ax=axes, pad=0.01)
    axes.set_ylabel(rows)
    axes.set_yticks(range(len(names)) if len(names) <= 16 else [], names if len(names) <= 16 else [])
    axes.set_title(title, loc="left")
    axes.grid(False)
    _site_ticks(axes, sites, named=len(sites) <= 24)


def _draw_grid(figure, h_res: np.ndarray, sites: Sequence[str], rows: int, columns: int) -> None:
    scale = colours(h_res, most=1.0)
    grid = figure.subplots(rows, columns, squeeze=False)
    n = h_res.shape[-1]
    numbers = n <= 4 and columns <= 8
    for site, axes in enumerate(grid.flat):
        axes.set(xticks=range(n) if n <= 8 else [], yticks=range(n) if n <= 8 else [])
        axes.tick_params(length=0, labelsize=6)
        if site >= len(sites):
            axes.set_axis_off()
            continue
        axes.grid(False)
        axes.imshow(h_res[site], cmap=scale.cmap, norm=scale.norm, interpolation="nearest")
        axes.set_title(sites[site], fontsize=9 if columns <= 8 else 7, pad=2)
        if numbers:
            for (i, j), value in np.ndenumerate(h_res[site]):
                colour = "black" if is_bright(scale.to_rgba(value)) else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(scale, ax=grid, pad=0.01, aspect=40)
    figure.supylabel("H_res of each site: to stream", fontsize=9)
    figure.supxlabel("from stream", fontsize=9)


def is_bright(rgba: Sequence[float]) -> bool:
    """Whether black text is easier to read on it than white text."""
    red, green, blue = rgba[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue > 0.5


def panels(recorded: Record) -> dict[str, list[Quantity]]:
    """The plots of :data:`PANELS` for which a record has something, and what."""
    found = {
        title: [BY_NAME[name] for name in names if recorded.get(name) is not None] for title, names in PANELS.items()
    }
    return {title: quantities for title, quantities in found.items() if quantities}


def draw_depth(grid: np.ndarray, recorded: Record, sites: Sequence[str]) -> None:
    """One plot per entry of :func:`panels`, through depth: a line for each kind of site."""
    values, kinds = by_site(recorded), _kinds(sites)
    for axes in grid.flat[len(panels(recorded)) :]:
        axes.set_axis_off()
    for axes, (title, shown) in zip(grid.flat, panels(recorded).items()):
        for quantity, colour in zip(shown, COLOURS):
            line = _visible(values[quantity.name], quantity)
            for (kind, where), style in zip(kinds.items(), STYLES):
                label = ", ".join([quantity.title] * (len(shown) > 1) + [kind] * (len(kinds) > 1))
                marker = style["marker"] if len(sites) <= 24 else None
                axes.plot(where, line[where], label=label, color=colour, markersize=3, **{**style, "marker": marker})
        _frame(axes, shown)
        axes.set_title(title, loc="left")
        axes.set_xlim(-0.5, len(sites) - 0.5)
        _site_ticks(axes, sites, named=False)
        if len(shown) * len(kinds) > 1:
            axes.legend()


def draw_steps(figure: Figure, steps: Sequence[int], records: Sequence[Record], sites: Sequence[str], *, columns: int):
    """Every quantity of all records over training steps, a line for each site, coloured by depth, dashed by kind."""
    history, kinds = [by_site(recorded) for recorded in records], list(_kinds(sites))
    scale = ScalarMappable(Normalize(0, max(len(sites) - 1, 1)), DEPTH)
    # A run that newer code has resumed measures more than it did at first.
    quantities = [quantity for quantity in present(records[0]) if all(quantity.name in values for values in history)]
    grid = figure.subplots(math.ceil(len(quantities) / columns), columns, squeeze=False)
    for axes in grid.flat[len(quantities) :]:
        axes.set_axis_off()
    for axes, quantity in zip(grid.flat, quantities):
        lines = _visible(np.stack([values[quantity.name] for values in history]), quantity)
        for site, line in enumerate(lines.T):
            style = STYLES[kinds.index(_kind(sites[site]))]
            marker = style["marker"] if len(steps) < 3 else None
            axes.plot(steps, line, color=scale.to_rgba(site), **{**style, "linewidth": 1.2, "marker": marker})
        _frame(axes, [quantity])
        axes.set_title(quantity.title, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(COUNTS)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    kinds = ", ".join(f"{kind} {style['linestyle']}" for kind, style in zip(kinds, STYLES))
    ticks = MaxNLocator(10, integer=True)
    figure.colorbar(scale, ax=grid, pad=0.01, aspect=50, ticks=ticks, label=f"site, through depth; {kinds}")


def draw_parts(figure: Figure, rows: Sequence[Mapping[str, Any]], *, columns: int) -> None:
    """Bars of the time of every part, one plot for each kind of step in the table."""
    times = [name for name in ("ms a step", "us a token") if name in rows[0]]
    grid = figure.subplots(math.ceil(len(times) / columns), min(columns, len(times)), squeeze=False)
    for axes, name, colour in zip(grid.flat, times, COLOURS):
        bars = {row["part"]: row[name] for row in rows if row[name] is not None}
        axes.barh([*bars], [*bars.values()], color=colour)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(name)


def _kind(site: str) -> str:
    return site.split()[1]


def _kinds(sites: Sequence[str]) -> dict[str, np.ndarray]:
    """Positions of the sites of each kind."""
    kinds = np.array([_kind(site) for site in sites])
    return {kind: np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds.tolist())}


def _visible(values: np.ndarray, quantity: Quantity) -> np.ndarray:
    return np.maximum(values, quantity.shown[0]) if quantity.log else values


def _frame(axes: Axes, quantities: Sequence[Quantity]) -> None:
    """Range, scale and the line of what mixes nothing."""
    for value in {quantity.neutral for quantity in quantities} - {None}:
        axes.axhline(value, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    bottom, top = axes.get_ylim()
    low, high = quantities[0].shown
    if quantities[0].log or top > 10:
        axes.set_yscale("log")
        bottom = low if quantities[0].log else max(bottom, low / 10)
    axes.set_ylim(min(bottom, low), max(top, high))


def _site_ticks(axes: Axes, sites: Sequence[str], *, named: bool) -> None:
    """Lines between layers, and a name under every site, or a number under every layer, at most twelve of them."""
    layers = [site.split()[0] for site in sites]
    starts = [site for site, layer in enumerate(layers) if site == 0 or layers[site - 1] != layer]
    if len(starts) <= 24:
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="0.5", linewidth=0.5, alpha=0.5, zorder=0)
    if named:
        axes.set_xticks(range(len(sites)), [site.replace(" ", "\n") for site in sites])
        axes.set_xlabel("site: layer and kind")
        return
    ends = [*starts[1:], len(sites)]
    centres = [(start + end - 1) / 2 for start, end in zip(starts, ends)]
    every = math.ceil(len(starts) / 12)
    axes.set_xticks(centres[::every], [layers[start] for start in starts[::every]])
    axes.set_xlabel("layer")


@contextlib.contextmanager
def theme(name: Theme) -> Iterator[None]:
    """Ink and type for a light or a dark page; the background is left to the page."""
    ink = INK[name]
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), ink),
        "axes.edgecolor": "#8b949e",
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.labelsize": "small",
        "figure.facecolor": "none",
        "grid.alpha": 0.25,
        "legend.fontsize": "small",
        "legend.frameon": False,
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "xtick.labelsize": "small",
        "ytick.labelsize": "small",
    }
    with matplotlib.rc_context(settings):
        yield


def svg(draw: Callable[[], Figure], name: Theme) -> bytes:
    """The drawing of ``draw``, for a light or a dark page."""
    return _saved(draw, name, format="svg")


def png(draw: Callable[[], Figure], name: Theme) -> bytes:
    """The drawing of ``draw`` for a light or a dark page, as pixels."""
    return _saved(draw, name, format="png", dpi=150)


def save_png(draw: Callable[[], Figure], path: Path) -> None:
    """Writes the drawing of ``draw`` on white; the folder is created if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_saved(draw, "light", format="png", dpi=150, facecolor="white"))


def _saved(draw: Callable[[], Figure], name: Theme, **options: Any) -> bytes:
    stream = io.BytesIO()
    with theme(name):
        draw().savefig(stream, **options)
    return stream.getvalue()
