"""The picture of an embedding: its axes, dots or density, labels, and points without spread."""

import warnings

import numpy as np
import pytest
from embeddings import random_views
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from mmdma_core.matching import pictures
from mmdma_core.matching.commands import Outputs

X, Y = random_views(80, 60, 4)
X, Y = X * [4, 2, 1, 0.5] + 1e3, Y * [4, 2, 1, 0.5] + 1e3
LABELS = np.arange(80) % 3, np.array(list("012"))[np.arange(60) % 3]


def test_principal_axes_are_those_of_all_points():
    mean, axes, share = pictures._principal(X, Y)
    points = np.concatenate([X, Y]) - mean
    assert points.mean(0) == pytest.approx(0, abs=1e-9)
    _, values, rows = np.linalg.svd(points, full_matrices=False)
    assert abs(np.diag(rows[:2] @ axes)) == pytest.approx(1)
    assert share == pytest.approx((values**2 / (values**2).sum())[:2])


@pytest.mark.parametrize("labels", [(None, None), LABELS])
@pytest.mark.parametrize(
    "views",
    [(X, Y), (X[:, :1], Y[:, :1]), (np.ones((5, 3)), np.ones((4, 3))), (X.astype("f4"), Y.astype("f4"))],
)
def test_it_is_drawn_either_way(tmp_path, monkeypatch, views, labels):
    labels = labels if labels[0] is None else (labels[0][: len(views[0])], labels[1][: len(views[1])])
    drawn = []
    for name in ("_draw_dots", "_draw_density"):
        plain = getattr(pictures, name)
        monkeypatch.setattr(pictures, name, lambda *given, name=name, plain=plain: drawn.append(name) or plain(*given))
    for most in (len(views[0]) + 1, len(views[0])):
        monkeypatch.setattr(pictures, "DENSITY_FROM", most)
        pictures.draw_embedding(*views, *labels, tmp_path / "e.png")
        assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == ["_draw_dots", "_draw_density"]


def test_every_cell_is_in_a_bin_and_every_panel_has_one_range():
    parts = X[:, :2], Y[:, :2]
    _, panels = pictures._draw_density(parts, tuple(map(pictures._labelled, parts, LABELS)))
    assert len(panels) == 5
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes, _ in panels}) == 1
    bins = [axes.collections[0] for axes, _ in panels[:2]]
    assert [of.get_array().sum() for of in bins] == [80, 60]
    assert len({(of.norm.vmin, of.norm.vmax) for of in bins}) == 1
    for (axes, _), part in zip(panels, parts, strict=False):
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left < part[:, 0].min() < part[:, 0].max() < right
        assert bottom < part[:, 1].min() < part[:, 1].max() < top


def test_a_bin_has_the_colour_of_its_most_frequent_label():
    rng = np.random.default_rng(0)
    part = rng.normal(size=(400, 2)) * 0.1
    part[:, 0] += np.repeat([0, 20, 40, 60], 100)
    names = np.repeat(["a", "b", "c", "rare"], 100)
    names[[0, 100, 200, 300]] = "b"  # one of a hundred in its place
    axes = pictures.Figure().subplots()
    shown = {"a": "#ff0000", "b": "#00ff00", "c": "#0000ff"}
    bins = pictures._bins(axes, pictures._extent((part, part)), part)
    pictures._draw_labels(axes, pictures._extent((part, part)), (part, names), shown)
    axes.collections[1].update_scalarmappable()
    colors = np.array([to_hex(color) for color in axes.collections[1].get_facecolor()])
    assert len(colors) == len(bins.get_array())
    for k, color in enumerate((*shown.values(), to_hex(pictures.OTHERS))):
        there = abs(bins.get_offsets()[:, 0] - 20 * k) < 1
        most = bins.get_array()[there].argmax()
        assert colors[there][most] == color


@pytest.fixture
def drawn(tmp_path, monkeypatch, caplog):
    """Draw cells with labels either way; the figure as it was saved, and its legend of labels."""

    def draw(labels, dense):
        saved, save = [], pictures.save
        monkeypatch.setattr(
            pictures, "save", lambda figure, *how, **more: saved.append(figure) or save(figure, *how, **more)
        )
        e = np.random.default_rng(0).normal(size=(len(labels), 3)) * [3, 2, 1]
        labels = np.array(labels, dtype=object)
        monkeypatch.setattr(pictures, "DENSITY_FROM", len(labels) if dense else 10**6)
        pictures.draw_embedding(e, e + 0.1, labels, labels[::-1], tmp_path / "e.png")
        (figure,) = saved
        found = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
        return figure, next(legend for legend in found if legend.get_title().get_text() == "label")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield draw


PEOPLES = [
    ["HLA$A_1_2$", "B"],
    ["_unassigned", "_B", "T"],
    [r"\frac{1}{2}", r"$\alpha$", "$", "$$", "100 %", "a_b^c", "\\", "{x}"],
    ["CD4\u207a T", "\u03b3\u03b4 T", "\u6d3b\u6027\u5316", "\u0631\u0626\u0629", "\U0001f9ec", "\U0001d7d8"],
    ["two\nlines", "tab\there", " ", "nul\0x"],
    ["x" * 1000, "CD4-positive, alpha-beta memory T cell, CD45RO-positive"],
    ["1 others", "1 other"],
]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("labels", PEOPLES, ids=lambda labels: str(len("".join(labels))))
def test_labels_stand_in_the_legend_as_they_are(drawn, labels, dense):
    figure, legend = drawn(labels * 4, dense)
    assert {text.get_text() for text in legend.get_texts()} == {pictures.shortened(label) for label in labels}
    _is_whole_and_beside(figure, legend)


def _is_whole_and_beside(figure, legend):
    renderer = FigureCanvasAgg(figure).get_renderer()
    with pictures.as_it_stands():
        box, page = legend.get_window_extent(renderer), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    beside = [axes.get_window_extent(renderer) for axes in figure.axes if axes.axison]
    assert not any(box.overlaps(other) for other in beside)
    assert min(other.width for other in beside[:2]) > 200  # pixels: the cells keep their place


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("number", "rest"), [(20, None), (21, "1 other"), (40, "20 others"), (300, "280 others")])
def test_the_most_frequent_labels_have_colours_of_their_own(drawn, number, rest, dense):
    labels = [f"subtype number {i}" for i in range(number) for _ in range(2 if i % 7 else 5)]
    figure, legend = drawn(labels, dense)
    texts = [text.get_text() for text in legend.get_texts()]
    frequent = [f"subtype number {i}" for i in range(0, number, 7)][:20]
    assert set(texts[: len(frequent)]) == set(frequent) or len(frequent) == 20
    assert len(texts) == 20 + (rest is not None)
    assert texts[20:] == ([rest] if rest else [])
    colors = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert len(set(colors)) == len(colors)
    _is_whole_and_beside(figure, legend)
    if not dense:
        dots = figure.axes[1].collections
        assert sum(len(part.get_offsets()) for part in dots) == 2 * len(labels)
        grey = [len(part.get_offsets()) for part in dots if to_hex(part.get_facecolor()[0]) == to_hex("0.75")]
        assert bool(sum(grey)) is (rest is not None)


def test_what_the_font_lacks_comes_from_others_and_what_all_lack_is_one_line(tmp_path, caplog):
    pictures._others.cache_clear()
    figure = pictures.Figure()
    inside, nowhere = figure.text(0, 0.2, "a hook: \u1d81"), figure.text(0, 0.8, "\u6d3b\u6027 \u5316")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "b.png", "c.svg"):
            pictures.save(figure, tmp_path / name)
    assert len(inside.get_fontfamily()) == 2
    font = pictures.findfont(pictures.FontProperties(family=[inside.get_fontfamily()[1]]))
    assert "\u1d81" in pictures._characters(font)
    if len(nowhere.get_fontfamily()) == 1:  # no font of these characters is installed
        assert [record.getMessage() for record in caplog.records] == [
            "no font that is installed has \u5316 \u6027 \u6d3b: boxes stand in their place"
        ]


def test_a_picture_that_fails_costs_a_line_and_nothing_else(tmp_path, caplog):
    def fail(path):
        raise ValueError("what\nhappens")

    outputs = Outputs(tmp_path)
    (tmp_path / "old.png").touch()
    outputs.draw("old.png", fail)
    outputs.write("table.csv", lambda path: path.write_text("1"))
    outputs.check()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert caplog.messages == ["old.png is left out, it cannot be drawn: ValueError: what happens"]
