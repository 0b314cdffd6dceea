"""Metrics from a sample of cells: what its intervals cover, what it costs in accuracy, and that it is said."""

import numpy as np
import pytest
import torch
from embeddings import partial_match, random_views
from scipy.stats import binomtest
from sklearn.metrics import silhouette_samples

from mmdma_core.matching import labels
from mmdma_core.matching import match_ranks as sampling
from mmdma_core.matching.match_ranks import match_ranks
from mmdma_core.matching.metrics import evaluate

N_X, N_Y, MATCHED = 420, 380, 300
SEEDS = range(200)


@pytest.fixture(scope="module")
def case():
    """Two views that match in part, with labels that go with the first component in part."""
    x, y = random_views(N_X, N_Y, 2)
    match = partial_match(N_X, N_Y, MATCHED)
    y[match[match >= 0]] = x[match >= 0] + 0.3 * y[match[match >= 0]]
    noise = random_views(N_X, N_Y, 1, seed=1)
    kinds = [np.digitize(view[:, 0] + 0.5 * off[:, 0], [-0.7, 0.7]) for view, off in zip((x, y), noise, strict=True)]
    return torch.tensor(x), torch.tensor(y), match, kinds


def estimates(case, sample, seed):
    """Metric -> its interval."""
    x, y, match, kinds = case
    ranks = match_ranks(x, y, match, sample, seed)
    low, high = ranks.overlap_interval()[:, 9]
    return {
        "foscttm": ranks.foscttm().interval,
        "top5_count": ranks.top_k(5).interval,
        "top5_percent": ranks.top_k(5, percent=True).interval,
        "overlap": (low, high),
        "label_transfer_accuracy": labels.transfer_accuracy(x, y, kinds, 5, sample, seed).interval,
        "label_silhouette": labels.silhouette(x, y, kinds, sample, seed).interval,
    }


@pytest.mark.parametrize("sample", [60, 200])
def test_an_interval_covers_the_value_over_all_cells(case, sample):
    """In 95 of 100 draws, more or less; one that is twice too wide, as without the correction, covers it in all."""
    x, y, match, kinds = case
    exact = evaluate(x, y, match, *kinds)
    truth = exact.values | {"overlap": exact.overlap[9]}
    found = [estimates(case, sample, seed) for seed in SEEDS]
    for name in found[0]:
        covered = np.mean([of[name][0] <= truth[name] <= of[name][1] for of in found])
        assert 0.9 <= covered <= 0.99, (name, covered)


def test_a_sampled_cell_has_the_rank_that_it_has_among_all(case):
    x, y, match, _ = case
    every, ranks = match_ranks(x, y, match), match_ranks(x, y, match, 50, seed=3)
    rng = np.random.default_rng(3)
    of_x, of_y = (sampling.draw(MATCHED, 50, rng) for _ in "xy")
    assert not np.array_equal(of_x, of_y)
    assert ranks.x.tolist() == every.x[of_x].tolist()
    assert ranks.y.tolist() == every.y[of_y].tolist()
    assert (ranks.n_x, ranks.n_y, ranks.matched) == (N_X, N_Y, MATCHED)
    assert ranks.notes() == every.notes()


def test_a_sampled_cell_has_the_silhouette_that_it_has_among_all(case):
    x, y, _, kinds = case
    points, codes = torch.cat([x, y]).numpy(), np.concatenate(kinds)
    codes[7] = 3  # alone with its label: 0
    drawn = np.array([2, 7, 100, N_X + 5])
    assert labels._silhouettes(points, codes, drawn) == pytest.approx(silhouette_samples(points, codes)[drawn])


def test_a_draw_is_without_replacement():
    drawn = sampling.draw(50, 49, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 49
    assert drawn.max() < 50
    assert sampling.draw(50, 50, None).tolist() == sampling.draw(50, None, None).tolist() == list(range(50))
    often = np.bincount(np.concatenate([sampling.draw(20, 5, np.random.default_rng(seed)) for seed in range(2000)]))
    assert often == pytest.approx(500, abs=5 * np.sqrt(2000 / 4 * 3 / 4))  # each cell as often as another


@pytest.mark.parametrize("hits", [0, 1, 17, 39, 40])
def test_the_interval_of_a_fraction_is_wilsons(hits):
    low, high = sampling.of_fraction(hits / 40, 40, 10**9)
    assert (low, high) == pytest.approx(tuple(binomtest(hits, 40).proportion_ci(method="wilson")), abs=1e-6)
    assert 0 <= low <= hits / 40 <= high <= 1


def test_intervals_at_0_and_1_have_a_width():
    """A match that is right for each cell drawn need not be right for all."""
    for end, inner in ((0.0, 0.0019), (1.0, 0.9981)):
        assert sampling.of_fraction(end, 2000, 10**6) == pytest.approx(sorted([end, inner]), abs=1e-4)
        assert sampling.of_mean(np.full(2000, end), 10**6) == pytest.approx(sorted([end, inner]), abs=1e-4)
    line = np.arange(1000.0)[:, None]
    found = evaluate(line, line, np.arange(1000), np.zeros(1000), np.arange(1000) // 999, sample=200)
    assert found.values["foscttm"] == 0
    assert found.intervals["foscttm"][0] == 0
    assert 0 < found.intervals["foscttm"][1] < 0.02
    assert found.intervals["top1_count"][1] == 1
    assert 0.98 < found.intervals["top1_count"][0] < 1


def test_of_all_cells_the_interval_is_a_point():
    assert sampling.of_fraction(0.3, 10, 10) == pytest.approx((0.3, 0.3))
    assert sampling.of_mean(np.arange(10) / 10, 10) == pytest.approx((0.45, 0.45))
    assert sampling.of_mean(np.zeros(1), 1) == (0, 0)


def test_the_interval_of_both_directions_is_the_stratified_one():
    ends = [(0.2 - 0.03, 0.2 + 0.03), (0.4 - 0.04, 0.4 + 0.04)]
    assert sampling.of_both([0.2, 0.4], ends) == pytest.approx((0.3 - 0.025, 0.3 + 0.025))


def test_many_cells_are_sampled_and_few_are_not(case, monkeypatch):
    x, y, match, kinds = case
    assert (sampling.EXACT_UP_TO, sampling.SAMPLED_CELLS) == (50_000, 2000)
    every = evaluate(x, y, match, *kinds)
    assert (every.sampled, every.intervals, every.overlap_interval) == ({}, {}, None)
    monkeypatch.setattr(sampling, "SAMPLED_CELLS", 90)
    monkeypatch.setattr(sampling, "EXACT_UP_TO", N_X)
    assert evaluate(x, y, match, *kinds).values == every.values
    monkeypatch.setattr(sampling, "EXACT_UP_TO", N_X - 1)  # x is the larger view
    found, again = evaluate(x, y, match, *kinds), evaluate(x, y, match, *kinds)
    assert (found.values, found.intervals) == (again.values, again.intervals)
    assert set(found.intervals) == set(found.values) == set(every.values)
    for name, (low, high) in found.intervals.items():
        assert low < found.values[name] < high, name
        assert found.values[name] == pytest.approx(every.values[name], abs=0.15)
    together = found.sampled.pop("label_silhouette")
    assert sum(together) == 90
    assert min(together) > 0
    assert found.sampled.pop("neighbourhood_overlap") == (90, 0)
    assert set(found.sampled.values()) == {(90, 90)}
    assert found.overlap_interval.shape == (2, N_Y)
    assert any("drawn at random" in note for note in found.notes)
    exactly = evaluate(x, y, match, *kinds, sample=None)
    assert (exactly.values, exactly.sampled) == (every.values, {})


def test_the_middle_of_a_normal_interval_is_the_value(case):
    x, y, match, kinds = case
    worse = [np.roll(kind, 1) for kind in kinds]  # labels that go with nothing: a silhouette below 0
    found = evaluate(x, y[:320], np.where(match < 320, match, -1), worse[0], worse[1][:320], sample=60)
    assert found.values["label_silhouette"] < 0
    for name in ("foscttm", "label_silhouette"):
        assert np.mean(found.intervals[name]) == pytest.approx(found.values[name], abs=1e-9), name


def test_what_a_sample_takes_all_of_has_no_interval(case):
    x, y, match, kinds = case
    found = evaluate(x, y, match, *kinds, sample=MATCHED)
    assert "foscttm" not in found.intervals
    assert found.overlap_interval is None
    assert found.sampled["label_transfer_accuracy"] == (MATCHED, MATCHED)
    assert evaluate(x, y, match, *kinds, sample=N_X + N_Y).intervals == {}


def test_ties_are_counted_among_the_sampled():
    place = np.ones((60, 2))
    assert match_ranks(place, place, np.arange(60), 20).notes() == (
        "40 of 40 sampled true matches are as far as another cell: ties count half",
    )


@pytest.mark.parametrize("sample", [1, 0, -5, 2.5, "all", True])
def test_a_bad_sample(case, sample):
    with pytest.raises(ValueError, match="sample must be an integer of at least 2, None or 'auto', got"):
        evaluate(*case[:3], sample=sample)
