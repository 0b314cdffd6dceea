"""What a plan forecasts: the paper's grid on cards that are not here, what a budget cuts, a sweep as it then runs."""

import dataclasses
import math

import pytest
from conftest import ROOT
from test_records import known, load, record

import mmdma_core
from benchmarks import plan, sweep
from benchmarks.analysis import predict
from benchmarks.analysis.published import PAPER_VARIANTS
from benchmarks.measuring import guard
from benchmarks.plan import Forecast, Plan
from mmdma_core.compositions import PAPER
from mmdma_core.models import NOMINAL

V100 = predict.card("v100").rates()
# An H200 beside a V100, by their data sheets: 60.3 and 14 float32 Tflop/s, 4.8 and 0.9 TB/s, 132 and 80
# multiprocessors; half the time of a launch is assumed.
H200 = V100._replace(
    products=4.3 * V100.products,
    passes=5.3 * V100.passes,
    evaluated=4.3 * V100.evaluated,
    compiled=4.3 * V100.compiled,
    filled_by=1.65 * V100.filled_by,
    epoch_s=V100.epoch_s / 2,
)
CARDS = {"V100": (V100, 16), "H200": (H200, 141), "an H200 of which nothing is known but its memory": (V100, 141)}


@pytest.fixture
def paper(tmp_path):
    return dataclasses.replace(load(tmp_path, study="paper"), device="cuda")


def of_card(study, name, monkeypatch):
    rates, gib = CARDS[name]
    monkeypatch.setattr(plan, "machine_memory", lambda device: gib * 2**30)
    return Plan(study, rates)


@pytest.mark.parametrize("card", CARDS)
def test_no_budget_cuts_a_cell_of_the_papers_variants(paper, monkeypatch, card):
    planned = of_card(paper, card, monkeypatch)
    forecasts = planned.forecasts()
    assert {sweep: f.cut for sweep, f in forecasts.items() if f.cut and sweep[0] in PAPER_VARIANTS} == {}
    assert planned.hidden(forecasts) == ({}, {})
    assert forecasts["primal-keops", 1000].too_large is None  # up to the million
    assert "no budget is predicted to cut a measurement" in plan.describe(paper, rates=CARDS[card][0])


@pytest.mark.parametrize("card", ["V100", "H200"])
def test_the_papers_study_ends_within_12_hours(paper, monkeypatch, card):
    assert of_card(paper, card, monkeypatch).seconds_left() < 12 * 3600


def test_the_hours_in_the_docs_are_those_of_the_plan(paper, monkeypatch):
    rows = [line.split("|")[3:5] for line in (ROOT / "docs" / "gpu.md").read_text().splitlines() if " h | " in line]
    four = dataclasses.replace(paper, variants=PAPER_VARIANTS)
    planned = [[of_card(s, card, monkeypatch).seconds_left() / 3600 for s in (paper, four)] for card in CARDS]
    assert [[float(cell.strip(" h")) for cell in row] for row in rows] == [pytest.approx(p, rel=0.05) for p in planned]


def test_what_a_budget_cuts_is_named_with_what_that_hides(paper, monkeypatch):
    short = dataclasses.replace(paper, cell_budget_s=8, sweep_budget_s=238, variants=PAPER_VARIANTS)
    planned = of_card(short, "V100", monkeypatch)
    forecasts = planned.forecasts()
    cut = forecasts["primal-keops", 10].cut
    assert cut == paper.n[-len(cut) :]
    last = max(p for p in paper.p if forecasts["primal-keops", p].cut == cut)
    text = plan.describe(short, rates=V100)
    line = next(line for line in text.splitlines() if line.startswith("  primal-keops"))
    assert f"; cut by sweep_budget_s: p = 10 to {last} from n = {cut[0]}, p = " in line
    assert "sweep_budget_s is 238 s, cell_timeout_s is 600 s" in text
    without, among_fewer = planned.hidden(forecasts)
    assert without[10] == list(cut)  # nothing else fits there
    assert among_fewer == {}
    assert (
        f"{sum(map(len, without.values()))} points of Figure 1A no winner: p = 10 to {last} from n = {cut[0]}, " in text
    )


def test_a_winner_is_among_fewer_where_another_variant_is_measured(paper, monkeypatch):
    slow = dataclasses.replace(paper, n=(1000, 2000), p=(10,), cell_timeout_s=9.0, variants=("primal", "primal-keops"))
    planned = of_card(slow, "H200", monkeypatch)
    monkeypatch.setattr(
        planned, "_measurement_seconds", lambda variant, p, n: 10 if (variant, n) == ("primal", 2000) else 1
    )
    forecasts = planned.forecasts()
    assert forecasts["primal", 10] == Forecast(1 + 9.0, None, (2000,), "cell_timeout_s")
    assert planned.hidden(forecasts) == ({}, {10: [2000]})


def test_what_a_budget_has_cut_is_still_named(tmp_path):
    small = load(tmp_path)
    known(small, "primal", 100, 10)
    known(small, "primal", 200, 10, "skipped", detail="no time left in the sweep's budget")
    known(small, "primal", 100, 150, "timeout")
    known(small, "primal", 200, 150, "skipped", detail="timeout at n = 100", implied_by=100)
    forecasts = Plan(small).forecasts()
    assert forecasts["primal", 10] == Forecast(0.0, None, (200,), "sweep_budget_s")
    assert forecasts["primal", 150] == Forecast(0.0, None, (100, 200), "cell_timeout_s")


class _Clock:
    """In the place of the module `time`."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize(("sweep_s", "timeout_s"), [(1e9, 1e9), (20.0, 1e9), (1e9, 4.0), (9.0, 6.0), (6.0, 6.0)])
def test_a_sweep_runs_as_it_was_forecast(tmp_path, monkeypatch, stop, sweep_s, timeout_s):
    """The sweep itself, with cells that take what the plan thinks of each, and memory that ends as it thinks."""
    study = dataclasses.replace(
        load(tmp_path), n=(100, 500, 1000, 2000, 4000, 8000), p=(10,), stop_after_failure=stop, host_gib=2.0
    )
    study = dataclasses.replace(study, sweep_budget_s=sweep_s, cell_timeout_s=timeout_s, cell_budget_s=2.0, epochs=500)
    planned, clock = Plan(study, NOMINAL._replace(passes=1e9)), _Clock()
    forecast = planned.forecasts()["dual", 10]

    def measured(cell, who, left):
        fits = planned.fits("dual", 10, cell.n)
        takes = planned._measurement_seconds("dual", 10, cell.n) if fits else plan._OVERHEAD_S["cpu"]
        late = takes > min(left, timeout_s)
        clock.now += min(takes, left, timeout_s)
        status = "skipped" if late and left < timeout_s else "timeout" if late else "ok" if fits else "oom"
        return dataclasses.replace(record("dual", cell.n, 10, status), key=cell.key, limits={})

    monkeypatch.setattr(sweep, "time", clock)
    monkeypatch.setattr(guard, "measure_within", measured)
    records = list(sweep._sweep(study, "dual", 10, study.n, sweep_s, False))
    assert forecast.seconds == pytest.approx(clock.now)
    late = {r.n for r in records if r.status in ("skipped", "timeout") and planned.fits("dual", 10, r.n)}
    assert set(forecast.cut) == late
    assert math.isfinite(forecast.seconds)
    assert (forecast.by is None) == (not late)
    for made in records:
        planned.add(made)
    assert planned.forecasts()["dual", 10].cut == forecast.cut  # the same from what is known then
    assert mmdma_core.variant("dual").reference == PAPER


@pytest.mark.parametrize(
    ("ns", "words"),
    [
        ({1: [30, 40, 50]}, "p = 1 from n = 30"),
        ({1: [30, 40]}, "p = 1 at n = 30 to 40"),
        ({1: [10, 30, 50]}, "p = 1 at n = 10 and 30 and 50"),
        ({1: [10, 20, 50]}, "p = 1 at n = 10 to 20 and 50"),
        ({1: [20], 2: [20], 3: [10]}, "p = 1 to 2 at n = 20, p = 3 at n = 10"),
        ({1: [50], 3: [50]}, "p = 1 from n = 50, p = 3 from n = 50"),
    ],
)
def test_points_of_a_grid_are_ranges_where_they_are_neighbours_alone(ns, words):
    assert plan._at(ns, dict.fromkeys([1, 2, 3], (10, 20, 30, 40, 50))) == words
