"""Metrics of a match: known answers, what is left out, bad labels, memory; the values of the published package."""

import inspect
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from embeddings import X, Y, partial_match, random_views

from benchmarks.measuring import memory
from mmdma_core import metrics, simulate, variant
from mmdma_core.external import published
from mmdma_core.matching import match_ranks
from mmdma_core.matching.metrics import (
    evaluate,
    foscttm,
    label_silhouette,
    label_transfer_accuracy,
    neighbourhood_overlap,
    top_k,
)

missing = variant("published-primal").missing(torch.device("cpu"))
installed = pytest.mark.skipif(bool(missing), reason=str(missing))


def test_metrics_shows_its_functions_alone():
    shown = ["evaluate", "foscttm", "label_silhouette", "label_transfer_accuracy", "neighbourhood_overlap", "top_k"]
    assert dir(metrics) == sorted(metrics.__all__) == shown
    assert all(inspect.isfunction(getattr(metrics, name)) for name in shown)


def test_identical_views_match_perfectly():
    x, _ = random_views(200, 1)
    match = np.random.default_rng(1).permutation(200)
    y = np.empty_like(x)
    y[match] = x
    found = evaluate(x, y, match, np.arange(200) % 2, match.argsort() % 2, n_neighbors=1)
    perfect = {"foscttm": 0, "label_transfer_accuracy": 1}
    perfect |= dict.fromkeys(("top1_count", "top5_count", "top1_percent", "top5_percent"), 1)
    assert {name: found.values[name] for name in perfect} == perfect
    assert np.array_equal(found.overlap, np.ones(200))
    assert found.left_out == {}
    assert found.notes == ()


@pytest.mark.parametrize(("dtype", "step", "shift"), [(torch.float32, 2.0**-6, 1e4), (torch.float64, 2.0**-26, 1e7)])
def test_a_translation_changes_nothing(dtype, step, shift):
    """Coordinates in steps that the type holds far off as well; |x|^2 + |y|^2 - 2 x.y in it does not."""
    x, y = (torch.tensor(view / step, dtype=dtype).round() * step for view in random_views(150, 120))
    match = partial_match(150, 120, 100)
    labels = np.arange(150) % 3, np.arange(120) % 3
    here, there = (evaluate(x + shift, y + shift, match, *labels) for shift in (0, shift))
    # Coordinates less their mean are the same to a rounding of the shift, and so is what scikit-learn makes of them.
    silhouettes = [found.values.pop("label_silhouette") for found in (here, there)]
    assert silhouettes[0] == pytest.approx(silhouettes[1], abs=1e-9)
    assert here.values == there.values
    assert np.array_equal(here.overlap, there.overlap)


def test_a_collapsed_embedding_is_all_ties_and_said_so():
    place = np.ones((6, 2))
    found = evaluate(place, place, np.arange(6))
    assert found.values == {"foscttm": 0.5, "top1_count": 1 / 6, "top5_count": 5 / 6}
    assert found.overlap == pytest.approx(np.arange(1, 7) / 6)
    assert found.notes == (
        "all 6 cells of x lie at one point: no metric can tell them apart",
        "all 6 cells of y lie at one point: no metric can tell them apart",
        "12 of 12 true matches are as far as another cell: ties count half",
    )


def test_label_transfer_counted_by_hand():
    """3 cells of each label: from x one cell of y is misjudged, from y none of x."""
    x, labels_x = np.array([[0.0], [1], [2], [10], [11], [12]]), list("aaabbb")
    y, labels_y = x + 0.1, list("aabbbb")
    accuracy = label_transfer_accuracy(x, y, labels_x, labels_y, n_neighbors=3)
    assert accuracy == pytest.approx((5 / 6 + 1) / 2)


def test_label_silhouette_counted_by_hand():
    """Points 0 and 1 of label a, 4 and 5 of b. For 0: a = 1, b = (4 + 5) / 2; for 1: a = 1, b = (3 + 4) / 2."""
    x, y = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [5.0]])
    assert label_silhouette(x, y, ["a", "b"], ["a", "b"]) == pytest.approx((3.5 / 4.5 + 2.5 / 3.5) / 2)


@pytest.mark.parametrize(
    "of",
    [
        lambda codes: codes,
        lambda codes: codes.tolist(),
        torch.tensor,
        lambda codes: np.array(["B", "memory", "naive"])[codes],
        lambda codes: pd.Categorical.from_codes(codes, ["B", "memory", "naive"]),
        lambda codes: pd.Series([f"type {code}" for code in codes]),
    ],
)
def test_labels_are_numbers_or_text_in_any_vector(of):
    x, y = random_views(60, 50)
    codes_x, codes_y = np.arange(60) % 3, np.arange(50) % 3
    found = evaluate(x, y, None, of(codes_x), of(codes_y))
    assert found.values == {
        "label_transfer_accuracy": label_transfer_accuracy(x, y, codes_x, codes_y),
        "label_silhouette": label_silhouette(x, y, codes_x, codes_y),
    }


def test_evaluate_holds_what_the_single_functions_say():
    x, y = random_views(110, 130)
    match, labels = partial_match(110, 130, 90), (np.arange(110) % 4, np.arange(130) % 4)
    found = evaluate(x, y, match, *labels, n_neighbors=3)
    assert found.values == {
        "foscttm": foscttm(x, y, match),
        "top1_count": top_k(x, y, match, 1),
        "top5_count": top_k(x, y, match, 5),
        "top1_percent": top_k(x, y, match, 1, percent=True),
        "top5_percent": top_k(x, y, match, 5, percent=True),
        "label_transfer_accuracy": label_transfer_accuracy(x, y, *labels, n_neighbors=3),
        "label_silhouette": label_silhouette(x, y, *labels),
    }
    assert np.array_equal(found.overlap, neighbourhood_overlap(x, y, match))
    assert found.left_out == {}
    assert found.notes == ("20 of 110 cells of x and 40 of 130 cells of y have no match: no mean includes them",)
    written = json.loads(json.dumps(asdict(found) | {"overlap": found.overlap.tolist()}))
    assert written["values"] == found.values


def test_evaluate_ranks_once(monkeypatch):
    calls = []
    monkeypatch.setattr(metrics, "match_ranks", lambda *given: calls.append(given) or match_ranks.match_ranks(*given))
    evaluate(*random_views(20, 20), np.arange(20))
    assert len(calls) == 1


def test_what_cannot_be_said_is_left_out_with_its_reason():
    x, y = random_views(99, 19)
    assert evaluate(x, y).left_out == dict.fromkeys(
        ("foscttm", "top1_count", "top5_count", "top1_percent", "top5_percent", "neighbourhood_overlap"),
        "no match given",
    ) | dict.fromkeys(("label_transfer_accuracy", "label_silhouette"), "labels_x and labels_y not given")
    assert evaluate(x, y).values == {}
    assert evaluate(x, y).overlap is None
    assert evaluate(x, y, labels_x=np.zeros(99)).left_out["label_silhouette"] == "labels_y not given"
    assert evaluate(x, y, partial_match(99, 19, 19), np.zeros(99), np.zeros(19), n_neighbors=20).left_out == {
        "top1_percent": "1 per cent of 19 cells is less than one cell",
        "top5_percent": "5 per cent of 19 cells is less than one cell",
        "label_transfer_accuracy": "n_neighbors = 20 exceeds the 19 cells of the smaller view",
        "label_silhouette": "all cells have one label, a silhouette needs two",
    }
    of_each_its_own = evaluate(x, y, None, np.arange(99), np.arange(99, 118)).left_out
    assert of_each_its_own["label_transfer_accuracy"] == "no label occurs in both views"
    assert of_each_its_own["label_silhouette"].startswith("every cell has a label of its own")


@pytest.mark.parametrize("gap", [None, np.nan])
@pytest.mark.parametrize("kind", [str, int])
def test_cells_without_a_label_are_left_out(gap, kind):
    """The metrics are those of the other cells alone, and the gaps are counted."""
    rng = np.random.default_rng(0)
    x, y = random_views(40, 30, 3)
    full = [rng.integers(0, 3, len(e)).astype(kind) for e in (x, y)]
    gaps = np.arange(40) % 5 == 1, np.arange(30) < 3
    labels = [
        [gap if none else label for none, label in zip(*pair, strict=True)] for pair in zip(gaps, full, strict=True)
    ]
    kept = [e[~none] for e, none in zip((x, y), gaps, strict=True)]
    expected = evaluate(*kept, None, *(of[~none] for of, none in zip(full, gaps, strict=True)))
    found = evaluate(x, y, None, *(np.array(of, dtype=object) for of in labels))
    assert found.values == expected.values
    assert set(found.values) == {"label_transfer_accuracy", "label_silhouette"}
    note = "8 of 40 cells of x and 3 of 30 cells of y have no label: metrics of labels leave them out"
    assert (note in found.notes, note in expected.notes) == (True, False)
    assert label_silhouette(x, y, *labels) == expected.values["label_silhouette"]
    left_out = evaluate(x, y, None, [gap] * 40, labels[1]).left_out
    assert left_out["label_silhouette"] == left_out["label_transfer_accuracy"] == "no cell of x has a label"


@pytest.mark.parametrize(
    ("labels_x", "labels_y", "n_neighbors", "message"),
    [
        (
            list("abab"),
            list("abab"),
            3,
            r"labels_x must have one entry for each of the 5 rows of e_x, got shape \(4,\)",
        ),
        (list("ababa"), "abab", 3, r"labels_y must have one entry for each of the 4 rows of e_y, got shape \(\)"),
        ([None] * 5, list("abab"), 3, "no cell of x has a label"),
        ([0, 1, 0, 1, 0], [0, 1, 1, np.nan], 4, "n_neighbors = 4 exceeds the 3 cells of the smaller view"),
        ([0, 1, 0, 1, 0], list("0101"), 3, "no label occurs in both views"),
        (list("ababa"), list("abab"), 0, "n_neighbors must be an integer of at least 1, got 0"),
        (list("ababa"), list("abab"), 2.0, "n_neighbors must be an integer of at least 1, got 2.0"),
        (list("ababa"), list("abab"), 5, "n_neighbors = 5 exceeds the 4 cells of the smaller view"),
    ],
)
def test_bad_labels(labels_x, labels_y, n_neighbors, message):
    with pytest.raises(ValueError, match=message):
        label_transfer_accuracy(X, Y, labels_x, labels_y, n_neighbors)


def test_bad_input_is_not_left_out():
    with pytest.raises(ValueError, match="match must be one-to-one"):
        evaluate(X, Y, [3, 0, -1, 3, 3])
    with pytest.raises(ValueError, match="n_neighbors must be an integer"):
        evaluate(X, Y, None, list("ababa"), list("abab"), n_neighbors=0)
    with pytest.raises(ValueError, match="labels_y must have one entry"):
        label_silhouette(X, Y, list("ababa"), list("aba"))


def test_memory_stays_far_below_n_x_n():
    n = 8000
    x, y = random_views(n, n, d=10)
    labels = np.arange(n) % 5
    memory.reset_host_peak()
    before = memory.host_peak_bytes()
    match_ranks.match_ranks(x, y, np.arange(n))
    label_silhouette(x, y, labels, labels)
    assert memory.host_peak_bytes() - before < n * n * 4 / 2


@pytest.mark.gpu
def test_a_gpu_gives_the_same_ranks():
    x, y = random_views(300, 280)
    match, labels = partial_match(300, 280, 250), (np.arange(300) % 4, np.arange(280) % 4)
    here = evaluate(x, y, match, *labels)
    there = evaluate(torch.tensor(x, device="cuda"), torch.tensor(y, device="cuda"), match, *labels)
    assert there.values == pytest.approx(here.values, abs=1e-12)
    assert np.array_equal(here.overlap, there.overlap)


class Dense(torch.Tensor):
    """Stands for a KeOps LazyTensor in the published package, whose formulas take half a minute to compile."""

    def argKmin(self, k, dim):
        return self.topk(k, dim, largest=False).indices.movedim(dim, 1)


@pytest.fixture
def published_metrics(monkeypatch):
    module = published.load("lsmmdma.metrics")
    monkeypatch.setattr(module, "LazyTensor", lambda tensor: tensor.as_subclass(Dense))

    def compute(x, y, match, labels=None):
        evaluation = module.Evaluation(match, labels, device=torch.device("cpu"))
        return evaluation.compute_all_evaluation(x, y)

    return compute


@installed
@pytest.mark.parametrize("n", [100, 237])
def test_values_are_those_of_the_published_package(n, published_metrics):
    """All but its neighbourhood overlap, which is the diagonal of an argsort and no rank."""
    x, y = map(torch.tensor, random_views(n, n))
    match = np.random.default_rng(2).permutation(n)
    y[match] += x
    labels = [(np.arange(n) + 2) % 3, (match.argsort() + 2) % 3]  # 2 comes first, a tied vote goes to 0
    theirs, ours = published_metrics(x, y, match, labels), evaluate(x, y, match, *labels)
    assert ours.values["foscttm"] == pytest.approx(theirs.foscttm, abs=1e-7)  # theirs is a float32
    assert ours.values["top1_percent"] == pytest.approx(theirs.top1)
    assert ours.values["top5_percent"] == pytest.approx(theirs.top5)
    assert ours.values["label_transfer_accuracy"] == pytest.approx(theirs.lta)
    assert 0.05 < theirs.foscttm < 0.45
    assert 0.05 < theirs.top1 < theirs.top5 < 0.95
    assert not np.allclose(ours.overlap, theirs.no, atol=0.05)


@pytest.mark.parametrize("which", ["ours", pytest.param("theirs", marks=installed)])
def test_the_published_case_a_view_against_itself(which, request):
    """The package's own test: 200 cells, 10 features, one view given twice. (Its wheel comes without tests.)"""
    x = simulate("branch", 200, 10).x
    if which == "ours":
        found = evaluate(x, x, np.arange(200)).values
        assert (found["foscttm"], found["top1_percent"], found["top5_percent"]) == (0, 1, 1)
    else:
        found = request.getfixturevalue("published_metrics")(x.double(), x.double(), np.arange(200))
        assert (found.foscttm, found.top1, found.top5) == (pytest.approx(0, abs=1e-3), 1, 1)
