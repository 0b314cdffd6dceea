"""Which variants agree, cell by cell."""

import pandas as pd
import pytest

from benchmarks.analysis import agreement
from benchmarks.experiments import citeseq, scale
from benchmarks.experiments.fits import style_of

TERMS = {"early_total": 1.0, "early_mmd": 0.5, "early_pen_x": 3.0, "early_pen_y": 4.0, "early_dis_x": 5.0}
SAME = TERMS | {"early_dis_y": 6.0, "status": "ok", "n": 100, "p": 10}


def table(**changed):
    return pd.DataFrame([{"variant": name} | SAME | values for name, values in changed.items()])


@pytest.mark.parametrize(
    ("term", "near", "far"),
    [("mmd", 0.50005, 0.502), ("pen_x", 3.002, 3.01), ("dis_y", 6.003, 6.02)],
)
def test_a_variant_that_computes_something_else_stands_apart(term, near, far):
    found = agreement.losses(table(a={}, b={f"early_{term}": near}, c={f"early_{term}": far}, d={"status": "oom"}))
    assert found["agree"].tolist() == ["a = b | c"]
    assert list(found.columns) == ["n", "p", "agree", "a", "b", "c"]


@pytest.mark.parametrize(
    ("best", "apart"),
    [
        ({"primal": 0.15, "primal-fused": 0.151, "primal-fourier": 0.16, "quantised-gw": 0.5}, set()),
        ({"primal": 0.15, "linear-time": 0.41}, {"linear-time"}),
        ({"primal": 0.15, "primal-fused": 0.3}, {"primal-fused"}),
        ({"primal": 0.15, "dual-fourier": 0.5}, set()),  # nobody to compare with
        ({"primal": 0.5, "primal-fourier": 0.04}, set()),
        ({"primal": 0.5, "primal-fourier": float("nan")}, {"primal-fourier"}),
    ],
)
def test_whose_match_is_unlike_its_family_s(best, apart):
    assert agreement.matches_apart(best) == apart


def test_each_cell_has_its_row_and_a_variant_that_did_not_end_there_no_loss(tmp_path):
    path = agreement.write_losses(table(a={}, b={"n": 200}), tmp_path)
    found = pd.read_csv(path)
    assert found["agree"].tolist() == ["a", "b"]
    assert found["b"].isna().tolist() == [True, False]


def test_a_figure_of_matches_marks_whose_is_unlike_its_family_s():
    starts = [("primal", 0.1), ("primal", 0.6), ("linear-time", 0.4), ("linear-time", 0.5), ("primal-fourier", 0.12)]
    table = pd.DataFrame([{"n": 100, "method": m, "status": "ok", "foscttm": f} for m, f in starts])
    assert scale._apart(table) == {"linear-time"}
    columns = scale._legend({name: style_of(name) for name in ("primal", "linear-time")}, scale._apart(table))
    labels = [line.get_label() for column in columns for line in column]
    unlike = ["≠ primal, linear-time MMD (approximate)", "≠ a match unlike its family's"]
    assert labels == ["primal", *unlike]


def test_the_bars_of_citeseq_mark_a_match_after_as_many_epochs_alone():
    made = {"data": "stand-in", "n": 100, "status": "ok"}
    rows = [made | {"variant": name, "foscttm": f, "foscttm_epoch": e} for name, f, e in (
        ("primal-fused", 0.2, 10), ("linear-time", 0.4, 10), ("primal-fourier", 0.4, 5),
    )]  # fmt: skip
    assert citeseq._apart(rows) == {"linear-time"}
    assert citeseq._label(rows[1], {"linear-time"}).startswith("≠ ")
