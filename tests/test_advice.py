"""Advice and plans, against what the laptop study of results/ measured: it was not consulted for the models' terms."""

import dataclasses
import re

import pandas as pd
import pytest
import torch
from conftest import ROOT, own_config

import mmdma_core
from benchmarks import study
from benchmarks.analysis import advise
from benchmarks.measuring import records
from benchmarks.plan import Plan, describe
from mmdma_core import MissingDependency, advice, registry
from mmdma_core.advice import Measured, Problem

LAPTOP = ROOT / "results" / "laptop-amd-epyc-2-cores"
RECORDS = records.read_all(LAPTOP)
CELLS = [record.measured for record in RECORDS if record.status == "ok"]
CPU = torch.device("cpu")
PLENTY = 2**40
CONFIG = own_config() | {"device": "cpu"}


def slowness(name, n, p, but=()):
    """How much slower a variant was than the fastest that `choose` may take, `but` those."""
    here = {cell.variant: cell.epoch_s for cell in CELLS if (cell.n, cell.p) == (n, p)}
    able = [v for v in here if mmdma_core.variant(v).exact and mmdma_core.variant(v).estimator is None]
    return here[name] / min(here[v] for v in able if v not in but)


@pytest.mark.parametrize(("n", "p"), sorted({(cell.n, cell.p) for cell in CELLS if cell.variant == "primal-fused"}))
def test_the_choice_is_nearly_the_fastest(n, p):
    """Models count every pair; how many dual-fused leaves out, since the dual starts so wide, must be measured."""
    blind = advice.choose(Problem(n, p, 10, CPU, PLENTY))
    assert slowness(blind.variant, n, p) < 5
    assert slowness(blind.variant, n, p, but=["dual-fused"]) < 2
    others = [cell for cell in CELLS if (cell.n, cell.p) != (n, p)]
    assert slowness(advice.choose(Problem(n, p, 10, CPU, PLENTY), others).variant, n, p) < 1.5


def test_four_of_five_cells_are_within_the_factor_that_the_other_cells_give():
    within = []
    for cell in CELLS:
        found = advice.estimate(*cell[:4], [other for other in CELLS if other[:3] != cell[:3]])
        within.append(1 / found.factor <= found.epoch_s / cell.epoch_s <= found.factor)
    assert sum(within) >= 0.8 * len(within)


def test_an_estimate_scales_the_nearest_cell_by_its_cost():
    cells = [Measured("dual", 1000, 100, 10, 0.5), Measured("dual", 8000, 100, 10, 32.0)]
    found = advice.estimate("dual", 4000, 100, 10, cells)
    assert found.epoch_s == pytest.approx(8.0)  # every term of the dual grows as n^2
    assert found.basis == "its nearest measurement, n = 8000, p = 100"
    assert advice.estimate("dual", 8000, 100, 10, cells).epoch_s == 32.0
    other = advice.estimate("dual-keops", 1000, 100, 10, cells)
    assert "at the speed of the other variants" in other.basis
    assert "nothing is measured" in advice.estimate("dual", 1000, 100, 10).basis
    gone = Measured("no-longer-there", 1000, 100, 10, 0.5)
    assert "nothing is measured" in advice.estimate("dual", 1000, 100, 10, [gone]).basis


def test_what_cannot_be_taken_is_passed_over_with_the_reason():
    choice = advice.choose(Problem(10_000, 10, 10, CPU, PLENTY, form="kernel"))
    assert choice.variant == "dual-fused"
    assert choice.passed_over["primal-fused"] == "takes no kernel views"
    assert "approximate" in choice.passed_over["linear-time"]
    with pytest.raises(MissingDependency, match=r"no exact variant is left .*dual: needs 4\.\d+ GiB of 977 KiB"):
        advice.choose(Problem(10_000, 10, 10, CPU, 10**6))


@pytest.mark.parametrize(("form", "linear"), [("dense", "primal-fourier"), ("kernel", "dual-fourier")])
def test_a_fit_of_more_than_ten_minutes_is_given_to_the_variant_linear_in_n(form, linear):
    assert advice.choose_for_fit(Problem(1000, 100, 10, CPU, PLENTY, form), 10_000).variant.endswith("-fused")
    problem = Problem(100_000, 100, 10, CPU, PLENTY, form)
    choice = advice.choose_for_fit(problem, 10_000)
    assert choice.variant == linear
    exact = advice.choose(problem)
    minutes = 10_000 * exact.estimate.epoch_s / 60
    assert f"{exact.variant}, the fastest exact variant, is predicted to take {minutes:,.0f} min" in str(choice)
    assert f"variant='{exact.variant}' insists on it" in str(choice)
    assert advice.choose_for_fit(problem, 10).variant == exact.variant


def test_where_no_exact_variant_fits_the_one_linear_in_n_is_taken():
    enough = mmdma_core.variant("primal-fourier").memory_model(10**6, 10, 10) + 2**20
    choice = advice.choose_for_fit(Problem(10**6, 10, 10, CPU, enough), 100)
    assert choice.variant == "primal-fourier"
    assert "no exact variant is left" in str(choice)


def test_ranks_are_given_to_a_variant_that_can_share_and_to_no_other():
    problem = Problem(10_000, 100, 10, CPU, PLENTY, ranks=2)
    assert advice.why_not("dual-fused", problem) == "runs in one process"
    assert advice.choose(problem).variant == "primal-fused"
    assert mmdma_core.variant(advice.choose_for_fit(problem, 1).variant).several_ranks


def test_a_gpu_need_not_be_here():
    assert advice.choose(Problem(10_000, 10, 10, None, PLENTY)).variant == "primal-fused"


def test_advise_in_words():
    laptop = study.load(CONFIG | {"machine": LAPTOP.name, "results": str(LAPTOP.parent)})
    text = advise.describe(laptop, 4000, 1000)
    assert text.startswith("n = 4,000 cells, p = 1,000 features, d = 10, ")
    assert f"{len(CELLS)} measurements in" in text
    assert "\ntake primal-fused: about " in text or "\ntake dual-fused: about " in text
    assert "rests on its measurement at n = 4000, p = 1000" in text
    assert "original-2020 " in text
    assert "\nor, approximate, primal-fourier: about " in text
    assert "of the exact ones on" in text
    elsewhere = advise.describe(laptop, 1_000_000, 1000, gpu_gib=16)
    assert "measurements of the published V100, since" in elsewhere
    assert "primal-keops             about " in elsewhere
    with pytest.raises(ValueError, match="--n must be at least 2"):
        advise.describe(laptop, 1, 10)


def test_advise_keeps_to_the_configured_limits_and_not_to_those_that_emulate(tmp_path, monkeypatch):
    monkeypatch.setattr(advise, "machine_memory", lambda device: 8 * 2**30)
    for given, limit in (
        ({}, "8 GiB"),
        ({"host_memory_gib": 0.01}, "10.2 MiB"),
        ({"host_memory_gib": 64}, "8 GiB"),
    ):
        config = CONFIG | {"machine": "here", "results": str(tmp_path)} | given
        text = advise.describe(study.on_this_machine(study.load(config), config), 1000, 100)
        assert f", {limit} of cpu memory" in text
    assert re.search(
        "original-2020 .*needs .* of 10.2 MiB",
        advise.describe(dataclasses.replace(study.load(CONFIG), host_gib=0.01), 1000, 100),
    )


def test_advise_tells_all(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_VARIANTS", dict(registry._VARIANTS))
    for name in ("measured-only", "nowhere"):
        mmdma_core.register(name, label=name, reference="a test")(None)
    made = dataclasses.replace(RECORDS[0], variant="measured-only", status="ok", epoch_s=[0.1])
    records.write(made, records.record_path(tmp_path / "here", made.variant, made.p, made.n))
    asked = study.load(CONFIG | {"machine": "here", "results": str(tmp_path)})
    text = advise.describe(asked, 4000, 1000)
    assert "  measured-only            no model: 1 measurement here\n" in text + "\n"
    assert "  nowhere                  no model: 0 measurements here\n" in text + "\n"
    assert "more of them" not in text
    little = advise.describe(asked, 50, 10, gpu_gib=2e5 / 2**30)
    assert re.search(r"\nor, approximate, primal-fourier: needs .* of 195 KiB; about ", little)
    assert re.search(r"\n  dual-fourier .*\); needs .* of 195 KiB; approximate\n", little)


def test_cells_of_the_same_processor_elsewhere_are_offered_by_name(tmp_path, monkeypatch):
    for folder, cpu in (("mine", "This One"), ("another", "Another")):
        for record in RECORDS[:2]:
            made = dataclasses.replace(record, machine=record.machine | {"cpu": cpu})
            records.write(made, records.record_path(tmp_path / folder, made.variant, made.p, made.n))
    monkeypatch.setattr("benchmarks.measuring.machine.cpu_model", lambda: "This One")
    asked = study.load(CONFIG | {"machine": "here", "results": str(tmp_path)})
    words = f"of the same processor, This One: {tmp_path / 'mine'} (2 records); --set machine=NAME takes them"
    assert f"\nmore of them {words}\n" in advise.describe(asked, 4000, 1000)
    assert words in describe(asked).splitlines()
    assert "same processor" not in advise.describe(
        study.load(CONFIG | {"machine": "mine", "results": str(tmp_path)}), 9, 9
    )


@pytest.mark.parametrize("known", [0, 40])
def test_the_plan_is_within_a_factor_of_two_of_what_then_happened(tmp_path, known):
    """The cells' own seconds; what Snakemake and the imports take is the plan's measured constant."""
    plan = Plan(study.load(CONFIG | {"study": "laptop", "machine": "nothing", "results": str(tmp_path)}))
    ordered = sorted(RECORDS, key=lambda record: (record.n * 7 + record.p) % 11)  # of all sizes
    for record in ordered[:known]:
        plan.add(record)
    took = sum(record.cell_s or 0 for record in ordered[known:])
    jobs = {variant for variant, _, _ in plan.remaining()}
    assert took / 2 <= plan.seconds_left() - 4 * len(jobs) <= 2 * took


def test_the_laptop_study_is_complete():
    laptop = study.load(CONFIG | {"study": "laptop"})
    assert set(laptop.points()) == {(record.variant, record.p, record.n) for record in RECORDS}
    assert pd.read_csv(LAPTOP / "summary.csv").shape[0] == len(RECORDS)
    assert dataclasses.asdict(RECORDS[0])["machine"]


def test_of_several_ranks_a_variant_of_one_process_is_left_out_before_its_memory_is_asked():
    problem = advice.Problem(700, 20, 3, torch.device("cpu"), ranks=2)
    assert advice.why_not("primal", problem) == "runs in one process"
    assert advice.choose_for_fit(problem, 40).variant == "primal-fused"
