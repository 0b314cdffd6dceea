"""What a figure claims: who wins a cell, what is hatched, where a line ends and why."""

import dataclasses
import types

import numpy as np
import pandas as pd
import pytest
from conftest import own_config
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from test_records import record

import mmdma_core
from benchmarks import figures, study
from benchmarks.analysis.published import PAPER_IMPLEMENTATIONS, PAPER_VARIANTS, winners
from benchmarks.analysis.table import to_frame
from benchmarks.figures import against_paper, curves, heatmap, style
from benchmarks.figures.scaling import scaled
from mmdma_core.matching import pictures


def cells(**outcomes):
    rows = []
    for variant, (status, runtime) in outcomes.items():
        made = record(variant.replace("_", "-"), status="skipped" if status == "oom later" else status)
        made.implied_end = "oom" if status == "oom later" else None
        made.runtime_s = runtime
        rows.append(made)
    return to_frame(rows)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"primal": ("ok", 3.0), "dual": ("ok", 2.0)}, "dual"),
        ({"primal": ("ok", 3.0), "dual": ("oom", None)}, "primal"),
        ({"primal": ("oom later", None), "dual": ("oom", None)}, "nothing fits"),
        ({"primal": ("timeout", None), "dual": ("oom", None)}, "too slow"),
        ({"primal": ("oom", None)}, "not all"),  # the other variant was not tried: nobody knows
        ({"primal": ("oom", None), "dual": ("missing_dependency", None)}, "not all"),
    ],
)
def test_the_winner_of_a_cell(outcomes, expected):
    assert winners(cells(**outcomes), expected=2)[0] == expected


def test_a_cell_that_nobody_tried():
    assert winners(None, expected=2) == ("untested",)


def test_the_map_has_every_cell_and_a_legend_for_what_it_shows():
    frame = to_frame([record("primal", 100, 10), record("dual", 200, 10, "oom"), record("primal", 200, 10, "oom")])
    (figure,) = heatmap.draw(frame, [100, 200, 300], [10, 20], [("title", ["primal", "dual"])])
    axes = figure.axes[0]
    assert sum(isinstance(patch, Rectangle) for patch in axes.patches) == 6
    assert sum(patch.get_hatch() == "////" for patch in axes.patches) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "primal",
        "every variant ran out of memory",
        "not tested",
    ]


def test_curves_mark_extrapolation_and_the_end_of_a_line():
    frame = to_frame([record("primal", 100, 10), record("primal", 200, 10, "oom"), record("dual", 100, 10)])
    figure = curves.draw(frame, "runtime_s", "seconds", [100, 200], [10], ["primal", "dual"], "title")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["primal", "dual", "extrapolated from fewer epochs", "line ends: out of memory"]
    markers = [line.get_marker() for line in figure.axes[0].lines]
    assert markers.count("x") == 1


def test_published_curves_lie_behind():
    published = pd.DataFrame({"variant": ["dual"], "p": [10], "n": [100], "runtime_s": [3.0]})
    frame = to_frame([record("primal", 100, 10)])
    figure = curves.draw(frame, "runtime_s", "seconds", [100], [10], ["primal"], "title", behind=published)
    assert any("published" in text.get_text() for text in figure.legends[0].get_texts())


@pytest.fixture(scope="module")
def drawn():
    """Name -> figure, of a study with every variant on the published p, some of it tied, extrapolated or ended."""
    values = own_config()
    p = [10, 100, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000]
    asked = {"n": [1000, 2000, 30_000], "p": p, "variants": ["all"], "epochs": 500, "host_memory_gib": 1}
    values["studies"] = {"test": asked | {"cell_budget_s": 1, "cell_timeout_s": 9, "sweep_budget_s": 99}}
    asked = study.load(values | {"study": "test", "device": "cpu", "machine": "nowhere"})
    made = [record(variant, n, p, "oom" if n == 30_000 else "ok") for variant, p, n in asked.points()]
    for one in made:
        one.machine = {"cpu": "A CPU With a Name as Long as They Come @ 2.00GHz"}
        one.peak_host_bytes = 2**20 * one.n
    return asked, dict(zip(figures.NAMES, figures._figures(asked, to_frame(made)), strict=True))


@pytest.mark.parametrize("name", figures.NAMES)
def test_a_figure_is_no_wider_than_a_page_and_all_of_it_is_inside(drawn, name):
    figure = drawn[1][name]
    assert figure.get_figwidth() <= style.PAGE
    assert figure.get_figheight() <= 11
    FigureCanvasAgg(figure).draw()
    beyond = 0.02  # inches: strokes are as wide
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -beyond
    assert box.x1 < figure.get_figwidth() + beyond
    assert box.y1 < figure.get_figheight() + beyond


@pytest.mark.parametrize("name", figures.NAMES)
def test_type_is_that_of_a_page(drawn, name):
    texts = [text for text in drawn[1][name].findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert len(texts) > 10
    assert {text.get_fontsize() for text in texts} <= {9, 10}


def test_maps_that_stand_side_by_side_have_one_size_and_one_frame(drawn):
    one, other = (drawn[1][name] for name in ("figure_1a", "fastest_of_all"))
    assert len(one.legends[0].get_texts()) != len(other.legends[0].get_texts())
    assert one.get_size_inches() == pytest.approx(other.get_size_inches())
    assert one.axes[0].get_position().bounds == other.axes[0].get_position().bounds


def test_the_papers_figures_have_its_six_implementations_alone(drawn):
    asked, found = drawn
    of_paper = ("primal", "primal-keops", "dual", "dual-keops", "original-2019", "original-2020")
    assert of_paper == PAPER_IMPLEMENTATIONS
    for name in ("figure_1b", "figure_a1"):
        texts = [text.get_text() for text in found[name].legends[0].get_texts()]
        assert {style.style(variant).label for variant in of_paper} == {text for text in texts if text in LABELS}
        colors = {line.get_color() for axes in found[name].axes for line in axes.lines}
        assert colors == {style.style(variant).color for variant in of_paper}
    texts = [text.get_text() for text in found["runtimes_all"].legends[0].get_texts()]
    assert {style.short_label(variant) for variant in asked.variants} <= set(texts)
    colors = {line.get_color() for axes in found["runtimes_all"].axes for line in axes.lines}
    assert colors == {style.style(variant).color for variant in asked.variants}


LABELS = {style.style(variant).label for variant in mmdma_core.variants()}


def test_the_legend_of_all_groups_them(drawn):
    texts = [text.get_text() for text in drawn[1]["runtimes_all"].legends[0].get_texts()]
    headings = [*style.GROUPS[:5], "marks"]
    bold = [text.get_text() for text in drawn[1]["runtimes_all"].legends[0].get_texts() if text.get_weight() == "bold"]
    assert bold == headings
    starts = {name: texts.index(name) for name in headings}
    for variant in ("primal", "published-dual", "original-2019", "dual-fused", "dual-fourier", "linear-time"):
        place = texts.index(style.short_label(variant))
        assert max((at, name) for name, at in starts.items() if at < place)[1] == style.group(variant)


def test_an_approximation_is_in_no_map(drawn):
    approximate = {name for name in mmdma_core.variants() if not mmdma_core.variant(name).exact}
    assert {"primal-fourier", "dual-fourier", "linear-time"} <= approximate
    colors = {style.style(name).color for name in approximate}
    for name in ("figure_1a", "fastest_of_all", "against_paper"):
        faces = {to_hex(patch.get_facecolor()) for axes in drawn[1][name].axes for patch in axes.patches}
        assert not {to_hex(color) for color in colors} & faces


def test_a_cell_of_several_that_are_equally_fast_is_split():
    made = [record("primal", 100, 10), record("dual", 100, 10), record("primal", 200, 10), record("dual", 200, 10)]
    for one, epochs in zip(made, ([1, 2, 4], [3, 3, 5], [1, 1, 1], [2, 2, 2]), strict=True):
        one.epoch_s = epochs
        one.set_runtime()
    (figure,) = heatmap.draw(to_frame(made), [100, 200], [10], [("title", ["primal", "dual"])])
    shapes = [(type(patch).__name__, to_hex(patch.get_facecolor())) for patch in figure.axes[0].patches]
    primal, dual = (style.style(variant).color.lower() for variant in ("primal", "dual"))
    assert shapes == [("Polygon", primal), ("Polygon", dual), ("Rectangle", primal)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["primal", "dual", "split: equally fast"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_bands_cut_a_square_into_equal_parts(count):
    areas = []
    for corners in style.bands(count):
        u, v = np.array(corners).T
        areas.append(abs(u @ np.roll(v, 1) - v @ np.roll(u, 1)) / 2)
    assert areas == pytest.approx([1 / count] * count)


@pytest.mark.parametrize(
    ("primal", "dual", "expected"),
    [
        ([1, 2, 4], [3, 3, 5], ("primal", "dual")),
        ([1, 2, 4], [5, 5, 5], ("primal",)),
        ([1.0], [1.1], ("primal",)),  # an epoch alone tells no spread
        ([1.0], [0.9, 1.1, 1.3], ("primal", "dual")),
    ],
)
def test_the_winners_of_a_cell(primal, dual, expected):
    made = [record("primal", epoch_s=primal), record("dual", epoch_s=dual), record("dual-keops", status="oom")]
    assert winners(to_frame(made), 3) == expected
    late = to_frame([record("primal", epoch_s=primal, prepare_s=9e9), *made[1:]])
    assert winners(late, 3) == ("dual",)  # what is formed once counts


def test_no_winner_has_one_reason():
    assert winners(None, 2) == ("untested",)
    assert winners(to_frame([record("primal", status="oom"), record("dual", status="oom")]), 2) == ("nothing fits",)


def test_styles_are_fixed_and_apart():
    assert set(mmdma_core.variants()) >= set(style._FIXED)
    looks = [style.style(variant) for variant in style._FIXED]
    for part in ("color", "marker", "label"):
        assert len({getattr(look, part) for look in looks}) == len(looks)
    approximate, exact = (
        {style.style(name).dash for name in style._FIXED if mmdma_core.variant(name).exact is kind}
        for kind in (False, True)
    )
    assert approximate == {style._APPROXIMATE}
    assert not approximate & (exact | set(style._SPARE_DASHES))
    assert style.style("linear-time").label.endswith("(approximate)")
    assert style.style("some-plugin") == style.style("some-plugin")
    assert style.style("some-plugin").label == "some-plugin"


def test_plugins_get_colours_of_their_own(monkeypatch):
    names = [*PAPER_VARIANTS, *(f"plugin-{i}" for i in range(5))]
    monkeypatch.setattr(style.mmdma_core, "variants", lambda: names)
    monkeypatch.setattr(
        style.mmdma_core, "variant", lambda name: types.SimpleNamespace(label=name, exact=True, objective=None)
    )
    assert len({style.style(name).color for name in names}) == len(names)


def grid_of(second, ns=(100, 200, 400), ps=(10, 20)):
    """primal-keops takes 1 s everywhere, primal second(n, p), where that is not None."""
    made = []
    for n in ns:
        for p in ps:
            for variant, runtime in (("primal-keops", 1.0), ("primal", second(n, p))):
                one = record(variant, n, p, "ok" if runtime else "oom")
                one.runtime_s = runtime
                made.append(one)
    return to_frame(made)


def test_log_ratios_of_the_cells_that_both_have():
    found = against_paper.log_ratios(grid_of(lambda n, p: None if n == 400 else n / 20))
    assert found[["first", "second"]].drop_duplicates().values.tolist() == [["primal-keops", "primal"]]
    assert dict(zip(found["n"], found["log_ratio"], strict=True)) == pytest.approx({100: -0.69897, 200: -1})
    assert len(found) == 4


def test_the_line_of_equal_runtimes_lies_where_they_cross():
    """The ratio is 200 / n: they cross at n = 200."""
    figure = against_paper.draw_log_ratios(grid_of(lambda n, p: n / 200), [100, 200, 400], [10, 20], "title")
    lines = [c for c in figure.axes[0].collections if isinstance(c, ContourSet) and not c.filled]
    assert len(lines) == 1
    points = lines[0].get_paths()[0].vertices
    assert points[:, 0] == pytest.approx(200, rel=1e-6)
    assert len(figure.axes[0].collections) == 3  # filled contours, the line, the dots
    assert [text.get_text() for text in figure.axes[1].texts] == ["no point where both\nwere measured"]


def test_where_one_runtime_is_missing_the_contours_are_blank():
    whole = against_paper.draw_log_ratios(grid_of(lambda n, p: 2.0), [100, 200, 400], [10, 20], "title")
    part = against_paper.draw_log_ratios(
        grid_of(lambda n, p: None if n == 400 else 2.0), [100, 200, 400], [10, 20], "title"
    )
    for figure, right, dots in ((whole, 400, 6), (part, 200, 4)):
        filled, points = figure.axes[0].collections
        drawn = [path.vertices for path in filled.get_paths() if len(path.vertices)]
        assert max(vertices[:, 0].max() for vertices in drawn) == pytest.approx(right)
        assert len(points.get_offsets()) == dots


def test_one_row_of_cells_has_dots_and_no_contour():
    figure = against_paper.draw_log_ratios(grid_of(lambda n, p: n / 200, ps=(10,)), [100, 200, 400], [10], "title")
    assert [type(c).__name__ for c in figure.axes[0].collections] == ["PathCollection"]


@pytest.mark.parametrize(("value", "words"), [(3.0, "3 x"), (0.5, "1/2 x"), (1.0, "1 x"), (12.345, "12.3 x")])
def test_factors_in_words(value, words):
    assert style.factor(value) == words


PEOPLES = ["$x_1_2$ mine", r"\frac", "_mine", "a_b^c $", "\u6d3b\u6027\u5316 mine", "long " * 30, "50 % of it"]


@pytest.mark.filterwarnings("error")
def test_text_of_people_stands_in_figures_as_it_is(monkeypatch, tmp_path):
    """Labels of plugins, names of machines."""
    registered = dict(mmdma_core.registry._VARIANTS)
    monkeypatch.setattr(mmdma_core.registry, "_VARIANTS", registered)
    for k, label in enumerate(PEOPLES):
        mmdma_core.register(f"_plugin{k}", label=label, reference="a test", exact=bool(k % 2))(None)
    values = own_config()
    asked = {
        "n": [1000, 2000],
        "p": [10, 100],
        "variants": ["primal", *list(registered)[-len(PEOPLES) :]],
        "epochs": 500,
    }
    values["studies"] = {"test": asked | {"cell_budget_s": 1, "cell_timeout_s": 9, "sweep_budget_s": 99}}
    asked = study.load(values | {"study": "test", "device": "cpu", "machine": "nowhere"})
    made = [record(variant, n, p) for variant, p, n in asked.points()]
    for one in made:
        one.machine = {"cpu": "A $CPU_1_2$ of " + 30 * "many words, "}
        one.peak_host_bytes = 2**20 * one.n
    made += [dataclasses.replace(one, devices=2) for one in made]
    monkeypatch.setattr("benchmarks.figures.scaling.read_scaling", lambda root: scaled(made))
    table = to_frame(made[: len(made) // 2])
    found = dict(zip(figures.NAMES, figures._figures(asked, table), strict=True))
    found[figures.SEVERAL] = figures._of_several_devices(asked, table)
    for name, figure in found.items():
        style.save(figure, tmp_path, name)
        with pictures.as_it_stands():
            box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert min(box.x0, box.y0) > -0.03, name
        assert box.x1 < figure.get_figwidth() + 0.03, name
        raw = [text.get_text() for text in figure.findobj(Text) if "mathdefault" in text.get_text()]
        assert not raw, name
    texts = {text.get_text() for text in found["runtimes_all"].legends[0].get_texts()}
    assert {style.short_label(f"_plugin{k}") for k in range(len(PEOPLES))} <= texts
    assert {"$x_1_2$ mine", "_mine", r"\frac"} <= texts
    assert "_mine (approximate), n = 1,000, p = 10" in {t.get_text() for t in found["scaling"].legends[0].get_texts()}
    svg = (tmp_path / "runtimes_all.svg").read_text(encoding="utf-8")
    assert "$x_1_2$ mine" in svg
    assert "A $CPU_1_2$ of" in svg
