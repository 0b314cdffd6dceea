"""Ranks of true matches, and the metrics made of them: by hand, counted one by one, and bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from embeddings import MATCH, X, Y, partial_match, random_views

from mmdma_core.matching import match_ranks
from mmdma_core.matching.match_ranks import MatchRanks
from mmdma_core.matching.metrics import foscttm, neighbourhood_overlap, top_k


def counted(e_x, e_y, match):
    """By the definition, one match after the other: lists of all ranks that it may have, (in the order of x, of y)."""

    def ranks(cell, own, others):
        squared = [((cell - other) ** 2).sum() for other in others]
        closer = sum(other < own for other in squared)
        return list(range(1 + closer, 1 + closer + sum(other == own for other in squared)))

    found = {}
    for i, j in enumerate(match):
        if j >= 0:
            own = ((e_x[i] - e_y[j]) ** 2).sum()
            found[i] = ranks(e_x[i], own, e_y), j, ranks(e_y[j], own, e_x)
    return [of for of, _, _ in found.values()], [of for _, _, of in sorted(found.values(), key=lambda of: of[1])]


def test_a_line_against_itself_reversed():
    """Points 0..3, matches mirrored: an end has all 3 others closer, an inner point only the match's neighbour, itself.

    (An inner point is at 1 from its match; at 0 lies one cell, and the other at 1 counts half.)
    """
    line = torch.arange(4.0)[:, None]
    match = [3, 2, 1, 0]
    assert foscttm(line, line, match) == pytest.approx(3 / 4)
    assert foscttm(line, line, match, ties=0) == pytest.approx(2 / 3)
    assert [top_k(line, line, match, k) for k in (1, 2, 3, 4)] == [0, 0.25, 0.5, 1]
    assert neighbourhood_overlap(line, line, match).tolist() == [0, 0.25, 0.5, 1]
    assert match_ranks.match_ranks(line, line, match).tied == 4  # the inner points, in both directions


def test_the_worst_match():
    ends = np.array([[0.0], [1.0]])
    assert foscttm(ends, ends, [1, 0]) == 1
    assert neighbourhood_overlap(ends, ends, [1, 0]).tolist() == [0, 1]


def test_a_random_embedding_has_foscttm_one_half():
    n = 1000
    x, y = random_views(n, n)
    error = 4 / np.sqrt(12 * n)  # four standard errors of the mean of n uniform fractions
    assert foscttm(x, y, np.arange(n)) == pytest.approx(0.5, abs=error)
    assert neighbourhood_overlap(x, y, np.arange(n)) == pytest.approx(np.arange(1, n + 1) / n, abs=2 * error)


@pytest.mark.parametrize("block", [1, 40, 2**20])
@pytest.mark.parametrize("grid", [False, True])  # on a grid most distances have equals
@pytest.mark.parametrize(("n_x", "n_y", "known"), [(23, 31, 17), (31, 23, 23), (12, 12, 12), (2, 9, 1)])
def test_ranks_are_those_counted_one_by_one(n_x, n_y, known, grid, block, monkeypatch):
    monkeypatch.setattr(match_ranks, "_BLOCK_ELEMENTS", block)
    x, y = random_views(n_x, n_y)
    if grid:
        x, y = x.round(), y.round()
    match = partial_match(n_x, n_y, known)
    of_x, of_y = counted(x, y, match)
    ranks = match_ranks.match_ranks(x, y, match)
    for lowest, tied, of in ((ranks.x, ranks.tied_x, of_x), (ranks.y, ranks.tied_y, of_y)):
        assert lowest.tolist() == [possible[0] for possible in of]
        assert tied.tolist() == [len(possible) - 1 for possible in of]
    assert ranks.tied == sum(len(possible) > 1 for possible in of_x + of_y)

    def mean(value, ranks):
        return np.mean([np.mean([value(rank) for rank in possible]) for possible in ranks])

    expected = (mean(lambda rank: (rank - 1) / (n_y - 1), of_x) + mean(lambda rank: (rank - 1) / (n_x - 1), of_y)) / 2
    assert foscttm(x, y, match) == pytest.approx(expected)
    expected = (mean(lambda rank: rank <= 3, of_x) + mean(lambda rank: rank <= 3, of_y)) / 2
    assert top_k(x, y, match, 3) == pytest.approx(expected)
    expected = (mean(lambda rank: rank <= n_y // 2, of_x) + mean(lambda rank: rank <= n_x // 2, of_y)) / 2
    assert top_k(x, y, match, 50, percent=True) == pytest.approx(expected)
    expected = [mean(lambda rank, k=k: rank <= k, of_x) for k in range(1, n_y + 1)]
    assert neighbourhood_overlap(x, y, match) == pytest.approx(expected)


def test_equal_cells_are_not_closer_than_the_true_match():
    """Rounding must not tell copies of one cell apart: the views lie far off, in values that float64 rounds."""
    rng = np.random.default_rng(0)
    x, y = np.repeat(rng.normal(size=(2, 1, 7)) * 1e3 + 0.1, 40, axis=1)
    ranks = match_ranks.match_ranks(x, y, rng.permutation(40))
    assert (ranks.x == 1).all()
    assert (ranks.y == 1).all()
    assert (ranks.tied_x == 39).all()
    assert (ranks.tied_y == 39).all()


@pytest.mark.parametrize(("k", "n", "fraction"), [(1, 199, 1 / 199), (5, 20, 1 / 20), (0.57, 10_000, 57 / 10_000)])
def test_a_percentage_is_rounded_down_to_cells(k, n, fraction):
    every = np.arange(1, n + 1)
    assert MatchRanks(every, every, n, n).top_k(k, percent=True).value == pytest.approx(fraction)


@pytest.mark.parametrize(
    "of",
    [
        lambda e: e[::-1].copy()[::-1],  # negative strides
        lambda e: e.astype(">f8"),
        lambda e: torch.tensor(e, requires_grad=True),
        lambda e: e.tolist(),
        pd.DataFrame,
    ],
)
def test_embeddings_come_in_any_dense_matrix(of):
    x, y = random_views(20, 20)
    assert foscttm(of(x), of(y), np.arange(20)) == foscttm(x, y, np.arange(20))


def test_a_match_is_any_vector_of_integers():
    x, y = random_views(20, 20)
    right = foscttm(x, y, np.arange(20))
    for match in (list(range(20)), torch.arange(20), np.arange(20, dtype=np.uint8), np.arange(20, dtype=np.uint64)):
        assert foscttm(x, y, match) == right


@pytest.mark.parametrize(
    ("x", "y", "match", "message"),
    [
        (X, Y, None, "match must hold integers, got object"),
        (X, Y, [0.0, 1, 2, 3, -1], "match must hold integers, got float64"),
        (X, Y, [True] * 5, "match must hold integers, got bool"),
        (X, Y, MATCH[:4], r"match must have one entry for each of the 5 rows of x, got shape \(4,\)"),
        (X, Y, [MATCH], r"match must have one entry .* got shape \(1, 5\)"),
        (X, Y, [3, 0, 4, 2, 1], r"match must hold rows of y, 0 to 3, or -1 for none, got match\[2\] = 4"),
        (X, Y, [3, 0, -2, 2, 1], r"match must hold rows of y, .* got match\[2\] = -2"),
        (X, Y, [-1] * 5, "no match is known, all 5 entries are -1"),
        (X, Y, [3, 0, -1, 3, 3], "match must be one-to-one: row 3 of y is the match of 3 rows of x"),
        (X[:4], Y, [3, 0, 1, 3], "match must be a permutation: row 3 of y is the match of 2 rows of x"),
        (X[:1], Y, MATCH, r"e_x must be a matrix of at least 2 cells and 1 component, got shape \(1, 3\)"),
        (X, Y[:, :0], MATCH, r"e_y must be a matrix of at least 2 cells and 1 component, got shape \(4, 0\)"),
        (X[0], Y, MATCH, r"e_x must be a matrix of at least 2 cells and 1 component, got shape \(3,\)"),
        (X, Y[:, :2], MATCH, "e_x and e_y must have one number of components, got 3 and 2"),
        (X * np.nan, Y, MATCH, "e_x must be finite and below 1e\\+150, it holds NaN"),
        (X, np.full_like(Y, np.inf), MATCH, "e_y must be finite and below"),
        (X, Y * 1e200, MATCH, "e_y must be finite and below"),
        (X.astype(complex), Y, MATCH, "e_x must be a dense matrix of real numbers, got ndarray of complex128"),
        (X, "text", MATCH, "e_y must be a dense matrix of real numbers, got str"),
        (torch.tensor(X).to_sparse(), Y, MATCH, "e_x must be a dense matrix of real numbers, got Tensor"),
        (X, torch.tensor(Y, device="meta"), MATCH, "e_x is on cpu and e_y on meta"),
    ],
)
def test_bad_embeddings_and_matches(x, y, match, message):
    with pytest.raises(ValueError, match=message) as raised:
        match_ranks.match_ranks(x, y, match)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("k", "percent", "message"),
    [
        (0, False, "k must be an integer of at least 1, got 0"),
        (1.5, False, "k must be an integer of at least 1, got 1.5"),
        (0, True, "k must be a percentage above 0 and up to 100, got 0"),
        (101, True, "k must be a percentage above 0 and up to 100, got 101"),
        (float("nan"), True, "k must be a percentage .* got nan"),
        ("5", True, "k must be a percentage .* got '5'"),
        (24, True, "24 per cent of 4 cells is less than one cell"),
    ],
)
def test_bad_k(k, percent, message):
    with pytest.raises(ValueError, match=message):
        top_k(X, Y, MATCH, k, percent)
