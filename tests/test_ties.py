"""Metrics where cells coincide: expected values under a random order of what is equally far, whatever computes them."""

import numpy as np
import pytest
import torch
from embeddings import random_views

from mmdma_core.matching import match_ranks as sampling
from mmdma_core.matching.labels import transfer
from mmdma_core.matching.match_ranks import match_ranks
from mmdma_core.matching.metrics import evaluate, foscttm, label_transfer_accuracy

N = 200


def with_empty_cells(share, seed=0, n=N, value=0.0):
    """Random embeddings whose cells are empty, in both views the same or not, for that share of them."""
    x, y = random_views(n, n, 5, seed)
    rng = np.random.default_rng(seed)
    x[rng.permutation(n)[: int(share * n)]] = value
    y[rng.permutation(n)[: int(share * n)]] = value
    return x, y


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1])
def test_empty_cells_are_no_match(share):
    """They are drawn apart in both views, so nothing matches: chance, and far less where ties count for the match."""
    found = [evaluate(*with_empty_cells(share, seed), np.arange(N)).values for seed in range(8)]
    assert np.mean([of["foscttm"] for of in found]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([of["top5_percent"] for of in found]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("value", [0, 0.1, 1e7 + 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_view_at_one_point_is_worth_chance(value, dtype):
    x, y = np.full((N, 3), value, dtype), random_views(N, N)[1].astype(dtype)
    found = evaluate(x, y, np.arange(N))
    assert found.values["foscttm"] == pytest.approx(0.5)  # of x all are tied, of y every rank occurs once
    assert found.values["top1_count"] == pytest.approx(1 / N)
    assert found.overlap == pytest.approx(np.arange(1, N + 1) / N)
    assert found.overlap[-1] == 1
    assert found.notes[0] == f"all {N} cells of x lie at one point: no metric can tell them apart"
    turned = evaluate(y, x, np.arange(N))  # of every cell of y all cells of x are as far
    assert turned.values == pytest.approx(found.values)
    assert turned.overlap == pytest.approx(np.arange(1, N + 1) / N)


def test_the_strict_value_counts_no_tie():
    x, y = with_empty_cells(1)
    assert (foscttm(x, y, np.arange(N), ties=0), foscttm(x, y, np.arange(N), ties=1)) == (0, 1)
    x, y = random_views(N, N)
    assert foscttm(x, y, np.arange(N), ties=0) == foscttm(x, y, np.arange(N))
    with pytest.raises(ValueError, match="ties must be a number from 0 to 1, got 2"):
        foscttm(x, y, np.arange(N), ties=2)


def test_distances_that_only_rounding_tells_apart_are_equal():
    """On a line of tenths 0.3 - 0.2 is not 0.2 - 0.1 in floating point; in tens it is."""
    tens = np.random.default_rng(0).integers(0, 30, (60, 1)).astype(float)
    match = np.random.default_rng(1).permutation(60)
    whole, tenths = (match_ranks(view, view, match) for view in (tens, tens / 100))
    for name in ("x", "y", "tied_x", "tied_y"):
        assert np.array_equal(getattr(whole, name), getattr(tenths, name)), name


@pytest.mark.parametrize("dimensions", [3, 20])  # SciPy's trees, and sums of products
def test_neither_blocks_nor_the_order_of_cells_change_a_value(monkeypatch, dimensions):
    x, y = (view[:, :1] @ np.ones((1, dimensions)) for view in with_empty_cells(0.4, value=0.1))
    labels, match = np.arange(N) % 4, np.random.default_rng(3).permutation(N)
    whole = evaluate(x, y, match, labels, labels[::-1])
    order = np.random.default_rng(4).permutation(N)
    place = order.argsort()
    shuffled = evaluate(x[order], y[order], place[match[order]], labels[order], labels[::-1][order])
    monkeypatch.setattr(sampling, "_BLOCK_ELEMENTS", 3 * N)
    small = evaluate(torch.tensor(x), torch.tensor(y), match, labels, labels[::-1])
    for found in (shuffled, small):
        assert found.values == pytest.approx(whole.values, abs=1e-12)
        assert found.overlap == pytest.approx(whole.overlap, abs=1e-12)
        assert found.notes == whole.notes


def test_a_sample_tells_what_ties_are_worth():
    x, y = with_empty_cells(0.6, n=2000)
    exact, found = (evaluate(x, y, np.arange(2000), sample=sample) for sample in (None, 400))
    for name in ("foscttm", "top5_percent"):
        low, high = found.intervals[name]
        assert low <= exact.values[name] <= high, name
        assert low < found.values[name] < high, name


def test_equally_far_neighbours_share_the_votes():
    """From 0: one neighbour of a at 1, then two of a and four of b at 2 for the two votes left: a 1 + 2/3, b 4/3."""
    there, of_there = np.array([[1.0], [2], [-2], [2], [2], [-2], [-2]]), list("aaabbbb")
    here, of_here = np.zeros((3, 1)), list("aba")
    back = 1 / 3 * (3 + 4 * 0)  # of seven cells, each has all three cells of the other view: a wins
    accuracy = label_transfer_accuracy(here, there, of_here, of_there, n_neighbors=3)
    assert accuracy == pytest.approx((2 / 3 + 3 * back / 7) / 2)


@pytest.mark.parametrize("dimensions", [3, 20])
def test_neighbours_that_only_rounding_tells_apart_share_the_votes(dimensions):
    """On every axis a tenth to both sides of one place; in most orders rounding would choose some of them."""
    steps = np.concatenate([np.eye(dimensions), -np.eye(dimensions)]) / 10
    codes = (np.arange(2 * dimensions) % 5 > 2).astype(int)
    for seed in range(5):
        order, place = np.random.default_rng(seed).permutation(len(steps)), np.random.default_rng(seed).normal()
        predicted, shared = transfer(place + steps[order], codes[order], np.full((1, dimensions), place), 3)
        assert (predicted.tolist(), shared) == ([0], 1)


def test_a_collapsed_view_predicts_its_most_frequent_label():
    labels = np.array(["b"] * 50 + ["a"] * 100 + ["c"] * 50)
    for order in (np.arange(N), np.random.default_rng(0).permutation(N)):
        place, y = np.ones((N, 20)) * 0.1, random_views(N, N, 20)[1]
        found = evaluate(place, y, None, labels[order], labels, n_neighbors=5)
        from_x, from_y = 0.5, found.values["label_transfer_accuracy"] * 2 - 0.5
        assert from_x == np.mean(labels == "a")
        assert from_y in (0.25, 0.5)  # all cells of x get one label
        assert f"{N} of {2 * N} cells have further neighbours as far as number 5: these share its vote" in found.notes


def test_coinciding_cells_and_few_neighbours_are_noted():
    x, y = random_views(9, 8)
    y[[1, 4, 6]] = y[0]
    labels = np.arange(9) % 2, np.arange(8) % 2
    assert evaluate(x, y, None, *labels).notes[:2] == (
        "4 of 8 cells of y coincide with another cell of it",
        "n_neighbors = 5 is more than half of the 8 cells of the smaller view",
    )
    rounded = (x.astype(np.float32) + np.float32(2e3), random_views(9, 9)[1])
    rounded[0][3:5] = rounded[0][0]
    rounded[0][4] = np.nextafter(rounded[0][4], np.float32(np.inf))  # as a product of matrices may leave it
    assert evaluate(*rounded).notes == ("3 of 9 cells of x coincide with another cell of it",)
