"""The picture of an embedding: its axes, dots or density, labels, and points without spread."""

import numpy as np
import pytest
from embeddings import random_views

from mmdma_core.matching import density, pictures

X, Y = random_views(80, 60, 4)
X, Y = X * [4, 2, 1, 0.5] + 1e3, Y * [4, 2, 1, 0.5] + 1e3
LABELS = np.arange(80) % 3, np.array(list("012"))[np.arange(60) % 3]


@pytest.mark.parametrize("block", [7, 2**16])
def test_principal_axes_are_those_of_all_points(monkeypatch, block):
    monkeypatch.setattr(pictures, "_BLOCK", block)
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
    grid = density.Grid.around(parts)
    assert [grid.counts(part).sum() for part in parts] == [80, 60]
    assert np.diff(grid.across) == pytest.approx(np.diff(grid.up)[0])
    corner = np.column_stack([grid.across[[0, 1]] + 0.01, grid.up[[2, 3]] + 0.01])
    assert np.argwhere(grid.counts(corner)).tolist() == [[2, 0], [3, 1]]  # up, across
    _, panels = pictures._draw_density(parts, tuple(map(pictures._labelled, parts, LABELS)))
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes, _ in panels}) == 1
    assert len(panels) == 5


def test_a_bin_has_the_colour_of_its_most_frequent_label():
    rng = np.random.default_rng(0)
    part = rng.normal(size=(300, 2))
    part[:, 0] += np.repeat([0, 20, 40], 100)
    names = np.repeat(["a", "b", "c"], 100)
    grid = density.Grid.around((part, part))
    figure = pictures.Figure()
    panels = list(figure.subplots(1, 2))
    key = density.draw_labels(panels, grid, (part, part), (names, names), ("#ff0000", "#00ff00", "#0000ff"))
    assert [patch.get_label() for patch in key] == ["a", "b", "c"]
    shown = np.asarray(panels[0].get_images()[0].get_array())
    third = shown.shape[1] // 3
    for k in range(3):  # red, green, blue from left to right
        of = shown[:, k * third : (k + 1) * third]
        assert of[of[..., 3] > 0][:, :3] == pytest.approx(np.tile(np.eye(3)[k], (np.count_nonzero(of[..., 3]), 1)))
    assert np.count_nonzero(shown[..., 3]) == np.count_nonzero(grid.counts(part))
    few = density.draw_labels(panels, grid, (part, part), (names, names), ("#ff0000", "#00ff00"))
    assert [patch.get_label() for patch in few] == ["a", "2 others"]
