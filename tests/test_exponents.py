"""Exponents of planted tables: known powers come back, and what cannot be fitted is said."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

import mmdma_core
from benchmarks.analysis import exponents as measured
from benchmarks.figures import scaling as figure

NS, PS = (1000, 3000, 10_000, 30_000, 100_000, 300_000), (10, 30, 100)


def table(variant, runtime, memory=None, ns=NS, ps=PS, device="cuda", **fields):
    rows = [
        {"variant": variant, "n": n, "p": p, "d": 10, "status": "ok", "device": device}
        | {"median_epoch_s": runtime(n, p), "peak_device_bytes": memory and memory(n, p), "peak_host_bytes": 7}
        for n in ns
        for p in ps
    ]
    return pd.DataFrame(rows).assign(**fields)


def only(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def noise(seed=0, size=0.02):
    generator = np.random.default_rng(seed)
    return lambda: float(np.exp(size * generator.standard_normal()))


def test_known_exponents_come_back_with_an_interval_that_holds_them():
    wobble = noise()
    found = measured.exponents(
        table("primal-keops", lambda n, p: 1e-9 * n**1.9 * p**0.05 * wobble(), lambda n, p: 80 * n)
    )
    row = only(found, quantity="runtime", term="n^2")
    assert (row["n"], row["p"]) == pytest.approx((1.9, 0.05), abs=0.02)
    assert row["n_low"] < 1.9 < row["n_high"] < 2 == row["n_theory"]
    assert row["p_low"] < 0.05 < row["p_high"]
    assert row["p_theory"] == 0


def test_noisier_cells_have_wider_intervals():
    widths = []
    for size in (0.01, 0.1):
        wobble = noise(size=size)
        row = only(
            measured.exponents(table("dual-keops", lambda n, p, wobble=wobble: n**2 * wobble())), quantity="runtime"
        )
        widths.append(row["n_high"] - row["n_low"])
    assert widths[1] == pytest.approx(10 * widths[0], rel=0.1)


def test_one_p_is_a_line_as_scipy_fits_it():
    wobble = noise(3, 0.1)
    cells = table("dual-keops", lambda n, p: 1e-9 * n**2 * wobble(), ps=(10,))
    row = only(measured.exponents(cells), quantity="runtime", term="n^2")
    assert row["note"] == "one p only"
    assert pd.isna(row["p"])
    above = cells[cells["median_epoch_s"] >= measured.FLOOR * cells["median_epoch_s"].min()]
    line = linregress(np.log(above["n"]), np.log(above["median_epoch_s"]))
    assert row["n"] == pytest.approx(line.slope)
    from scipy.stats import t

    assert row["n_high"] - row["n"] == pytest.approx(t.ppf(0.975, len(above) - 2) * line.stderr)


def test_overhead_stays_below_the_floor_and_is_counted():
    """Launches of 6 ms: with them the exponent would be 1.3."""
    found = measured.exponents(table("dual-keops", lambda n, p: 6e-3 + 1e-11 * n**2, ps=(10, 100)))
    row = only(found, quantity="runtime", term="n^2")
    assert row[["below", "points", "n_from"]].tolist() == [8, 4, 100_000]
    assert row["n"] == pytest.approx(1.95, abs=0.01)


def test_each_term_is_fitted_where_it_dominates():
    """The primal: n^2 for few features, n p^2 for n >> p >> d, n^2 p for n < p, as its model of cost has them."""
    cost = mmdma_core.variant("primal").cost_model
    ns, ps = (200, 500, 1000, 2000, 100_000, 200_000, 400_000, 800_000), (5, 10, 1000, 5000, 20_000)
    cells = table("primal", lambda n, p: cost(n, p, 10).seconds(), ns=ns, ps=ps)
    found = measured.exponents(cells).set_index("term")
    assert found.loc["n^2", ["n_theory", "p_theory"]].tolist() == [2, 0]
    assert found.loc["n^2", "n"] == pytest.approx(2, abs=0.1)
    assert found.loc["n^2 p", ["n", "p"]].tolist() == pytest.approx([2, 1], abs=0.15)
    assert "where no term dominates" in found.loc["mixed", "note"]


@pytest.mark.parametrize(
    ("variant", "n", "p", "expected"),
    [
        ("primal", 100_000, 10, (2, 0)),
        ("primal", 10_000, 10_000, (2, 1)),  # the seam n = p belongs to n <= p
        ("primal", 1000, 10_000, (2, 1)),
        ("dual", 1000, 10_000, (2, 0)),
        ("linear-time", 100_000, 2000, (1, 2)),
        ("primal", 10_000, 3000, None),
    ],
)
def test_the_dominating_term(variant, n, p, expected):
    cost = mmdma_core.variant(variant).cost_model
    assert measured.dominating(lambda *size: cost(*size).seconds(), n, p, 10) == expected


def test_a_seam_between_two_formulas_is_no_term():
    assert measured.dominating(lambda n, p, d: 1.0 if n < p else 2.0, 1000, 1000, 10) is None


def test_terms_in_words():
    assert [measured.term(pair) for pair in ((2, 0), (1, 2), (0, 1), (0, 0), None)] == [
        "n^2",
        "n p^2",
        "p",
        "constant",
        "mixed",
    ]


def test_too_few_points_are_said():
    found = measured.exponents(table("dual-keops", lambda n, p: n**2, ns=(1000, 10_000, 20_000), ps=(10,)))
    row = only(found, quantity="runtime")
    assert row["points"] == 2
    assert row["note"] == "too few points; one p only"
    assert pd.isna(row["n"])


def test_memory_is_the_devices_or_the_hosts():
    cells = table("dual", lambda n, p: n**2, lambda n, p: 12.0 * n**2)
    assert only(measured.exponents(cells), quantity="memory", term="n^2")["n"] == pytest.approx(2)
    on_host = cells.assign(device="cpu", peak_host_bytes=cells["n"].astype(float), peak_device_bytes=None)
    assert only(measured.exponents(on_host), quantity="memory", term="n^2")["n"] == pytest.approx(1)


def test_a_variant_that_no_longer_exists_is_named_with_its_cells():
    found = measured.exponents(table("gone", lambda n, p: n**2))
    assert only(found, quantity="runtime")["below"] == len(NS) * len(PS)
    assert found["note"].str.contains("no model of its .* is registered").all()


def test_nothing_measured_gives_an_empty_table_and_a_picture_that_says_so():
    empty = table("primal", lambda n, p: n**2, status="oom")
    assert measured.exponents(empty).empty
    drawn = figure.draw_exponents(empty, "title")
    assert {text.get_text() for axes in drawn.axes for text in axes.texts} == {
        "no term has enough points\n8 x above the least"
    }


def test_the_picture_has_a_dot_and_the_theory_of_each_fit():
    wobble = noise()
    drawn = figure.draw_exponents(table("primal-keops", lambda n, p: n**2 * wobble()), "title")
    first = drawn.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["primal, KeOps (LSMMD-MA): n²"]
    assert [line.get_marker() for line in first.lines] == ["None", "o", "|"]
    assert first.lines[1].get_xdata()[0] == pytest.approx(2, abs=0.05)
    assert first.lines[2].get_xdata()[0] == 2
