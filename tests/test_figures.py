"""What a figure claims: who wins a cell, what is hatched, where a line ends and why."""

import types

import pandas as pd
import pytest
from matplotlib.contour import ContourSet
from matplotlib.patches import Rectangle
from test_records import record

import mmdma_core
from benchmarks.figures import curves, heatmap, ratios, style
from benchmarks.paper.fastest import PAPER_VARIANTS, winner
from benchmarks.reading.table import to_frame


def cells(**outcomes):
    rows = []
    for variant, (status, runtime) in outcomes.items():
        made = record(variant.replace("_", "-"), status="skipped" if status == "oom later" else status)
        made.detail = "oom at n = 500" if status == "oom later" else ""
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
    assert winner(cells(**outcomes), expected=2) == expected


def test_a_cell_that_nobody_tried():
    assert winner(None, expected=2) == "untested"


def test_the_map_has_every_cell_and_a_legend_for_what_it_shows():
    frame = to_frame([record("primal", 100, 10), record("dual", 200, 10, "oom"), record("primal", 200, 10, "oom")])
    figure = heatmap.draw(frame, [100, 200, 300], [10, 20], ["primal", "dual"], "title")
    axes = figure.axes[0]
    assert sum(isinstance(patch, Rectangle) for patch in axes.patches) == 6
    assert sum(patch.get_hatch() == "////" for patch in axes.patches) == 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
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
    monkeypatch.setattr(style.mmdma_core, "variant", lambda name: types.SimpleNamespace(label=name, exact=True))
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
    found = ratios.log_ratios(grid_of(lambda n, p: None if n == 400 else n / 20))
    assert found[["first", "second"]].drop_duplicates().values.tolist() == [["primal-keops", "primal"]]
    assert dict(zip(found["n"], found["log_ratio"], strict=True)) == pytest.approx({100: -0.69897, 200: -1})
    assert len(found) == 4


def test_the_line_of_equal_runtimes_lies_where_they_cross():
    """The ratio is 200 / n: they cross at n = 200."""
    figure = ratios.draw(grid_of(lambda n, p: n / 200), [100, 200, 400], [10, 20], "title")
    lines = [c for c in figure.axes[0].collections if isinstance(c, ContourSet) and not c.filled]
    assert len(lines) == 1
    points = lines[0].get_paths()[0].vertices
    assert points[:, 0] == pytest.approx(200, rel=1e-6)
    assert len(figure.axes[0].collections) == 3  # filled contours, the line, the dots
    assert [text.get_text() for text in figure.axes[1].texts] == ["no cell where both were measured"]


def test_where_one_runtime_is_missing_the_contours_are_blank():
    whole = ratios.draw(grid_of(lambda n, p: 2.0), [100, 200, 400], [10, 20], "title")
    part = ratios.draw(grid_of(lambda n, p: None if n == 400 else 2.0), [100, 200, 400], [10, 20], "title")
    for figure, right, dots in ((whole, 400, 6), (part, 200, 4)):
        filled, points = figure.axes[0].collections
        drawn = [path.vertices for path in filled.get_paths() if len(path.vertices)]
        assert max(vertices[:, 0].max() for vertices in drawn) == pytest.approx(right)
        assert len(points.get_offsets()) == dots


def test_one_row_of_cells_has_dots_and_no_contour():
    figure = ratios.draw(grid_of(lambda n, p: n / 200, ps=(10,)), [100, 200, 400], [10], "title")
    assert [type(c).__name__ for c in figure.axes[0].collections] == ["PathCollection"]


@pytest.mark.parametrize(("value", "words"), [(3.0, "3 x"), (0.5, "1/2 x"), (1.0, "1 x"), (12.345, "12.3 x")])
def test_factors_in_words(value, words):
    assert style.factor(value) == words
