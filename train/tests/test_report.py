"""The report: every part is there when there is something to show, nothing is fetched, values can be read."""

import base64
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.text import Text

from mhc_jax import diagnostics
from mhc_jax.config import ConfigError
from mhc_jax.nn.backbone import SITES
from train.measure import streams
from train.report import figures, markup
from train.report.page import UNTAPPED, Findings, read_run, render
from train.report.quantities import QUANTITIES, by_site, policy_rows
from train.report.record import dump
from train.tests.tiny import tiny_config

SCHEMA = ["version", "name", "config", "summary", "device", "parameters", "cost", "policies", "profile", "streams"]


def recorded(sites=2, streams_=4, *, signed=False):
    rng = np.random.default_rng(0)
    h_res = rng.dirichlet(np.ones(streams_), (sites, 1, 1, streams_)) * (-1 if signed else 1)
    state = rng.normal(size=(sites, 1, 3, streams_, 8))
    weights = {"h_pre": rng.random((sites, streams_)), "h_post": rng.random((sites, streams_)), "h_res": h_res[:, 0, 0]}
    h_res, state = jnp.asarray(h_res), jnp.asarray(state)
    alpha, rank = jnp.full((sites, 1, 1, 3, 2), 0.5), jnp.full((sites, 1, 1), 2.0)
    numbers = [diagnostics.mixing(h_res), diagnostics.composite_gains(h_res), diagnostics.singular_values(h_res)]
    numbers += [diagnostics.routing(alpha), diagnostics.ranks(rank, streams_), diagnostics.stream_geometry(state)]
    return streams.record({**weights, **{name: x for part in numbers for name, x in part.items()}})


def findings(folder, **changes):
    lines = [{"step": step, "loss": 5 / step} for step in range(1, 9)]
    lines += [{"step": 8, "val_loss": 1.25}, *({"step": step, "streams": recorded()} for step in (4, 8))]
    parts = {
        "parameters": [{"module": "total", "parameters": "", "count": 1234, "bytes": 4936}],
        "cost": [{"one training step": "arithmetic", "value": 1.5, "unit": "GFLOP"}],
        "streams": recorded(),
        "tokens": "64 validation tokens",
        "summary": {"val_loss": 1.25, "val_ppl": 3.49, "seconds": 90, "unigram_ppl": 20.0, "tokens_per_second": None},
        "lines": lines,
    }
    return Findings("runs/<tiny>", tiny_config(folder), **{**parts, **changes})


@pytest.fixture
def unsaved(monkeypatch):
    """Pictures are drawn, but not saved, which takes most of the time: for tests of the words."""
    for name in ("svg", "png"):
        monkeypatch.setattr(markup, name, lambda draw, theme: bytes(draw() is None))


def headings(page):
    return re.findall("<h2>(.*?)</h2>", page)


@pytest.mark.slow
def test_every_part_is_there_and_nothing_is_fetched(tmp_path, monkeypatch):
    sizes, new_figure = [], figures.new_figure
    monkeypatch.setattr(figures, "new_figure", lambda *size: sizes.append(size) or new_figure(*size))
    page = render(findings(tmp_path))
    assert {width for width, _ in sizes} == {4.2, 11}  # for narrow and for wide windows
    assert headings(page) == [
        "Losses",
        "Streams",
        "Streams through depth",
        "Streams over training",
        "Parameters",
        "Cost of a training step",
        "Configuration",
    ]
    assert "<h1>runs/&lt;tiny&gt;</h1>" in page
    for words in ("1.25", "3.49", "1,234", "64 validation tokens", "GFLOP", "batch_size", "corpus.txt"):
        assert words in page
    for quantity in QUANTITIES:
        assert markup.definitions({quantity.title: quantity.meaning})[21:-5] in page
    assert "<script" not in page
    sources = re.findall(r'(?:src|srcset|href)="(.*?)"', page)
    assert len(sources) == 4 * 3 + 7  # three pictures in two widths and two themes, seven links within the page
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert "http" not in page
    assert "url(" not in page


def test_bars_of_parts_have_their_names_and_times():
    rows = [
        {"part": "mixer", "ms a step": 2.0, "us a token": 5.0},
        {"part": "optimizer", "ms a step": 1.0, "us a token": None},
    ]
    figure = figures.new_figure(6, 3)
    figures.draw_parts(figure, rows, columns=2)
    training, decoding = figure.axes
    assert [label.get_text() for label in training.get_yticklabels()] == ["mixer", "optimizer"]
    assert [bar.get_width() for bar in training.patches] == [2, 1]
    assert [bar.get_width() for bar in decoding.patches] == [5]


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved")
def test_every_weight_can_be_read(tmp_path):
    one = findings(tmp_path)
    page = render(one)
    assert page.count("<td style=") == 2 * (4 + 4 + 16 + 6 + 4)
    assert 'title="Components of 1 mixer, route.part 2.1: 0.5000"' in page
    assert 'title="Streams that tokens keep of 0 mixer, stream 1: 1.0000"' in page
    assert f'title="1 mixer: stream 2 to stream 3: {one.streams["h_res"][1][3][2]:.4f}"' in page
    assert f'title="H_pre of 0 mixer, stream 1: {one.streams["h_pre"][0][1]:.4f}"' in page


@pytest.mark.slow
def test_parts_without_content_are_left_out(tmp_path):
    page = render(findings(tmp_path, streams=None, cost=(), summary={}, lines=()))
    assert headings(page) == ["Streams", "Parameters", "Configuration"]
    assert UNTAPPED in page
    assert "<img" not in page


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved")
def test_a_topology_that_taps_no_read_still_has_its_other_weights(tmp_path):
    gated = {name: values for name, values in recorded().items() if name != "h_pre"}
    page = render(findings(tmp_path, streams=gated))
    assert "H_pre: what is read" not in page
    assert "H_post: what is written" in page


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved")
def test_records_of_older_code_and_of_other_topologies_lack_quantities(tmp_path):
    newer = recorded()
    older = {name: x for name, x in newer.items() if name.partition("_")[0] not in ("singular", "composite", "rank")}
    lines = [{"step": 1, "streams": older}, {"step": 2, "streams": newer}]
    page = render(findings(tmp_path, streams=older, lines=lines))
    assert "Streams over training" in headings(page)
    assert "least singular" not in page
    assert set(by_site(newer)) - set(by_site(older)) == {
        *("singular_max", "singular_min", "composite_max", "composite_min", "rank")
    }


@pytest.mark.slow
def test_policies_are_rows_of_extremes():
    one = recorded() | {"singular_max": [1.0, 1.5], "singular_min": [0.5, 0.25]}
    (row, other) = policy_rows({"float32": one, "bfloat16": one})
    assert row | {"policy": "bfloat16"} == other
    assert (row["largest singular"], row["least singular"], row["streams kept"]) == (1.5, 0.25, 2)


@pytest.mark.slow
def test_json_holds_every_number_and_null_for_what_is_not_finite(tmp_path):
    one = findings(tmp_path, policies=policy_rows({"float32": recorded()}))
    one.streams["forward_gain"] = [1.0, math.inf]
    found = json.loads(dump(one))
    assert [*found] == SCHEMA
    assert found["version"] == 1
    assert found["name"] == "runs/<tiny>"
    assert found["streams"]["sites"] == ["0 mixer", "1 mixer"]
    assert found["streams"]["statistics"] == one.streams | {"forward_gain": [1.0, None]}
    assert found["policies"][0]["policy"] == "float32"
    assert found["config"] == one.config.to_dict() | {"model": found["config"]["model"]}
    assert json.loads(dump(findings(tmp_path, streams=None)))["streams"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved")
def test_numbers_that_are_not_finite_are_drawn_around(tmp_path):
    broken = recorded()
    broken["forward_gain"] = [1.0, None]
    lines = [{"step": 1, "streams": broken}, {"step": 2, "streams": recorded()}]
    assert "Streams over training" in headings(render(findings(tmp_path, lines=lines)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "streams_", "signed"),
    [(1, 1, False), *(pytest.param(*wide, marks=pytest.mark.slow) for wide in ((12, 4, True), (96, 2, False)))],
)
def test_the_sheet_fits_any_depth(tmp_path, sites, streams_, signed):
    names = [f"{site // 2} {('mixer', 'mlp')[site % 2]}" for site in range(sites)]
    one = recorded(sites, streams_, signed=signed)
    figures.save_png(lambda: figures.stream_sheet(one, names, "title"), tmp_path / "sheet.png")
    png = (tmp_path / "sheet.png").read_bytes()
    width, height = (int.from_bytes(png[i : i + 4]) for i in (16, 20))
    assert 1900 < width < 2000
    assert height < 2 * width
    drawn = markup.matrices(np.array(one["h_res"]), names, figures.colours(np.array(one["h_res"])))
    assert drawn.count("<td") == sites * streams_**2


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved")
def test_rows_of_several_reads_are_named(tmp_path):
    views = {**recorded(), "h_pre": np.arange(24).reshape(2, 3, 4).tolist(), "h_post": np.ones((2, 1, 4)).tolist()}
    page = render(findings(tmp_path, streams=views))
    assert 'title="H_pre of 1 mixer, stream 2.3: 23.0000"' in page
    assert 'title="H_post of 1 mixer, stream 3: 1.0000"' in page
    assert page.count("Row a.b is stream b") == 1


def test_scales_have_two_colours_for_two_signs():
    assert figures.colours(np.array([0.5, 2])).get_clim() == (0, 2)
    assert figures.colours(np.array([-3, 2])).get_clim() == (-3, 3)
    assert figures.colours(np.zeros(2)).get_clim() == (0, 1)
    bar = markup.colour_bar(figures.colours(np.array([-1.0, 1])))
    assert "<span>-1</span>" in bar


def test_pictures_suit_their_page():
    def draw(narrow):
        figure = figures.new_figure(1 if narrow else 2, 1)
        figure.subplots().plot([1, 2])
        return figure

    page = markup.picture(draw, "a line")
    found = [base64.b64decode(text).decode() for text in re.findall(r"base64,(.*?)\"", page)]
    media = [*re.findall(r'media="(.*?)"', page), ""]
    assert len(found) == len(media) == 4
    for picture, where in zip(found, media):
        assert figures.INK["dark" if "dark" in where else "light"] in picture
        assert ('width="72pt"' in picture) == ("max-width" in where)
    assert markup.picture(draw, "a line", raster=True).count("data:image/png;base64,iVBOR") == 4


@pytest.mark.slow
def test_kinds_of_sites_are_told_apart():
    sites = ["0 mixer", "0 mlp", "1 mixer", "1 mlp"]
    grid = figures.new_figure(9, 9).subplots(3, 3)
    figures.draw_depth(grid, recorded(4), sites)
    assert all(axes.axison for axes in grid.flat)
    for axes in grid.flat:
        assert axes.get_xticks().tolist() == [0.5, 2.5]  # centred under the two sites of a layer
        *_, mixer, mlp = (line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() in "os")
        assert mixer.get_xdata().tolist() == [0, 2]
        assert mlp.get_xdata().tolist() == [1, 3]
        assert mixer.get_linestyle() != mlp.get_linestyle()
        assert {"mixer", "mlp"} <= {text.get_text().split(", ")[-1] for text in axes.get_legend().texts}


def test_a_damaged_summary_is_named(tmp_path):
    assert read_run(tmp_path) == ({}, [])
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="summary.json is damaged"):
        read_run(tmp_path)


def test_a_sheet_names_its_axes_its_sites_and_its_numbers():
    one = recorded(4)
    names = [f"site {index}" for index in range(len(one["h_res"]))]
    sheet = figures.stream_sheet(one, names, "the title")
    texts = {text.get_text() for text in sheet.findobj(Text)}
    assert {"H_res of each site: to stream", "from stream", "the title", *names} <= texts
    assert {f"{value:.2f}" for value in np.ravel(one["h_res"])} <= texts


def test_heat_maps_of_the_page_name_their_axes_and_fit_a_narrow_window():
    sites = ["0 mixer", "0 mlp"]
    scale = figures.colours(np.ones((4, 2)))
    strip = markup.strip(np.ones((4, 2)), list("0123"), sites, scale, "H_pre")
    assert re.findall(r'class="axis[^>]*>([^<]+)<', strip) == ["stream", "site: kind and layer"]
    assert float(re.search(r"min-width:([\d.]+)rem", strip)[1]) * 16 < 360
    squares = markup.matrices(np.ones((2, 4, 4)), sites, scale)
    assert re.findall(r'class="axis[^>]*>([^<]+)<', squares) == ["to stream", "from stream"]


@pytest.mark.slow
def test_the_colour_bars_of_a_sheet_stand_below_each_other():
    with figures.theme("light"):
        # Numbers of other length beside one of them.
        one = recorded(4, 4) | {"h_post": (1e4 * np.array(recorded(4, 4)["h_post"])).tolist()}
        sheet = figures.stream_sheet(one, ["0 mixer", "0 mlp", "1 mixer", "1 mlp"], "title")
        sheet.canvas.draw()
    bars = [axes.get_position().x0 for axes in sheet.axes if axes.get_label() == "<colorbar>"][:2]
    assert bars[0] == pytest.approx(bars[1], abs=1e-6)


@pytest.mark.slow
def test_history_has_a_line_for_each_site_over_all_steps():
    records = [{**recorded(), "entropy": [0.1 * step, 0.5]} for step in (1, 2, 3)]
    figure = figures.new_figure(6, 6)
    figures.draw_steps(figure, [10, 20, 30], records, ["0 mixer", "1 mixer"], columns=2)
    drawn = [[line for line in axes.lines if len(line.get_xdata()) == 3] for axes in figure.axes[: len(QUANTITIES)]]
    assert {len(lines) for lines in drawn} == {2}
    names = [quantity.name for quantity in QUANTITIES]
    first, second = drawn[names.index("entropy")]
    np.testing.assert_allclose(first.get_ydata(), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(second.get_ydata(), [0.5, 0.5, 0.5])


def test_four_kinds_of_sites_each_have_a_line_of_their_own():
    sites = [f"0 {kind}" for kind in SITES]
    figure = figures.new_figure(6, 6)
    figures.draw_steps(figure, [10, 20, 30], [recorded(4)] * 3, sites, columns=2)
    steps = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    grid = figures.new_figure(6, 6).subplots(3, 3)
    figures.draw_depth(grid, recorded(4), sites)
    depth = [line for line in grid[1, 0].lines if line.get_label() in SITES]
    assert [line.get_label() for line in depth] == list(SITES)
    assert len({line.get_linestyle() for line in steps}) == len({line.get_linestyle() for line in depth}) == 4


@pytest.mark.parametrize(("rows", "ticks"), [(16, 16), (17, 0)])
def test_rows_are_named_as_long_as_their_names_can_be_read(rows, ticks):
    axes = figures.new_figure(4, 4).subplots()
    names = [str(row) for row in range(rows)]
    figures._draw_strip(axes, np.zeros((rows, 2)), names, ["0 mixer", "1 mixer"], "H_pre")
    assert len(axes.get_yticks()) == ticks


@pytest.mark.slow
def test_sixteen_sites_stand_in_two_rows_and_more_in_longer_ones():
    def height(count):
        sites = [f"{index} mixer" for index in range(count)]
        return figures.stream_sheet(recorded(count), sites, "Streams").get_figheight()

    of_eight = 13 / 8 + 0.25
    assert height(16) - height(8) == pytest.approx(of_eight)
    assert height(17) - height(8) == pytest.approx(2 * (13 / 16 + 0.25) - of_eight)


def test_layers_stand_under_as_many_columns_as_they_have_sites():
    scale = figures.colours(np.ones((2, 4)))
    sites = ["0 mixer", "0 mlp", "1 mixer", "1 mlp"]
    page = markup.strip(np.ones((2, 4)), ["0", "1"], sites, scale, "H_pre")
    assert page.count("<th colspan=2>") == 2


@pytest.mark.parametrize(("streams_", "ticks"), [(4, 4), (8, 8), (9, 0)])
def test_streams_of_a_sheet_are_numbered_while_there_is_room(streams_, ticks):
    figure = figures.new_figure(4, 4)
    figures._draw_grid(figure, np.ones((1, streams_, streams_)), ["0 mixer"], 1, 1)
    assert len(figure.axes[0].get_xticks()) == len(figure.axes[0].get_yticks()) == ticks
