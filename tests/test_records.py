"""Records, the table, the plan."""

import dataclasses
import json

import pandas as pd
import pytest
from conftest import own_config

import benchmarks.plan
import mmdma_core
from benchmarks import study
from benchmarks.analysis import table
from benchmarks.measuring import records
from benchmarks.measuring.records import Record, UnreadableRecord
from benchmarks.plan import Plan, describe, duration


def record(variant="primal", n=1000, p=100, status="ok", **fields):
    made = Record(variant, n, p, 10, 500, 4, "cpu", "key", status, **fields)
    if status == "ok":
        made.prepare_s = made.prepare_s or 0.0
        made.epoch_s = made.epoch_s or [0.1, 0.1]
        made.set_runtime()
    return made


def test_a_record_survives_writing_and_reading(tmp_path):
    first = record(losses={"final": {"total": 1.5}}, machine={"gpu": None})
    path = records.record_path(tmp_path, "primal", 100, 1000)
    records.write(first, path)
    assert path == tmp_path / "records" / "primal" / "p100" / "n1000.json"
    assert records.read(path) == first
    assert [entry.name for entry in path.parent.iterdir()] == ["n1000.json"]


def test_runtime_is_measured_or_extrapolated():
    part = record(prepare_s=2.0, epoch_s=[0.3, 0.1, 0.2])
    assert (part.extrapolated, part.epochs_measured) == (True, 3)
    assert part.runtime_s == pytest.approx(2 + 500 * 0.2)
    whole = record(prepare_s=2.0, epoch_s=[0.1] * 499 + [5.1])
    assert (whole.extrapolated, whole.epochs_measured) == (False, 500)
    assert whole.runtime_s == pytest.approx(2 + 49.9 + 5.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "schema version None"),
        ('{"schema": 99}', "schema version 99"),
        ('{"schema": 1}', "missing"),
    ],
)
def test_unreadable_records_say_why(tmp_path, text, message):
    path = tmp_path / "records" / "primal" / "p1" / "n1.json"
    records.write_atomically(path, text)
    with pytest.raises(UnreadableRecord, match=message):
        records.read(path)


def test_an_unreadable_record_is_left_out_of_the_table_and_said_so(tmp_path, capsys):
    records.write(record(), records.record_path(tmp_path, "primal", 100, 1000))
    records.write_atomically(records.record_path(tmp_path, "primal", 100, 2000), "{")
    frame = table.write_summary(tmp_path)
    assert len(frame) == 1
    assert "left out: " in capsys.readouterr().err
    pd.testing.assert_frame_equal(table.read_summary(tmp_path), frame)
    assert "epoch_s" not in pd.read_csv(tmp_path / "summary.csv")
    assert pd.read_parquet(tmp_path / "summary.parquet")["epoch_s"].map(list).tolist() == [[0.1, 0.1]]
    assert len(pd.read_csv(tmp_path / "summary.csv")) == 1


def test_the_table_says_what_a_skipped_cell_was_skipped_for():
    frame = table.to_frame(
        [
            record(n=1000, status="oom"),
            record(n=2000, status="skipped", implied_by=1000, implied_end="oom"),
            record(n=3000, status="skipped", detail="no time left in the sweep's budget"),
        ]
    )
    assert list(frame["outcome"]) == ["oom", "oom", "budget"]


@pytest.mark.parametrize(
    ("detail", "outcome"), [("oom at n = 1000", "oom"), ("no time left in the sweep's budget", "budget")]
)
def test_an_older_record_says_in_words_what_it_was_skipped_for(tmp_path, detail, outcome):
    content = dataclasses.asdict(record(status="skipped", detail=detail))
    del content["implied_end"], content["deviations"]
    records.write_atomically(tmp_path / "old.json", json.dumps(content))
    assert list(table.to_frame([records.read(tmp_path / "old.json")])["outcome"]) == [outcome]


@pytest.fixture
def small(tmp_path):
    return load(tmp_path)


def load(folder, **keys):
    config = own_config()
    config |= {"study": "smoke", "device": "cpu", "results": str(folder), "machine": "here"} | keys
    return study.load(config)


def known(small, variant, n, p, status="ok", **fields):
    cell = small.measurement(variant, n, p)
    made = dataclasses.replace(record(variant, n, p, status, **fields), key=cell.key)
    made.limits = dataclasses.asdict(cell.limits) | {"sweep_budget_s": small.sweep_budget_s}
    records.write(made, small.path(variant, n, p))


def with_study(small, **fields):
    return dataclasses.replace(small, **fields)


def test_a_record_answers_a_question_that_it_would_answer_the_same(small):
    point = ("primal", 100, 10)
    assert small.known(*point) is None
    known(small, *point, epoch_s=[0.1] * 3, peak_host_bytes=2**29)
    assert small.known(*point)
    assert with_study(small, name="other", epochs=small.epochs, cell_timeout_s=1).known(*point)
    assert with_study(small, cell_budget_s=small.cell_budget_s / 2).known(*point)
    assert not with_study(small, cell_budget_s=small.cell_budget_s * 2).known(*point)  # fewer epochs would be guessed
    assert with_study(small, host_gib=0.6).known(*point)
    assert not with_study(small, host_gib=0.4).known(*point)
    assert not with_study(small, seed=5).known(*point)
    assert not with_study(small, epochs=7).known(*point)
    assert not with_study(small, threads=small.threads + 1).known(*point)


def test_a_limit_that_ended_a_cell_is_tried_again_when_it_is_lifted(small):
    known(small, "primal", 100, 10, "timeout")
    known(small, "dual", 100, 10, "oom")
    longer, larger = with_study(small, cell_timeout_s=9999), with_study(small, host_gib=64.0)
    assert small.known("primal", 100, 10)
    assert not longer.known("primal", 100, 10)
    assert longer.known("dual", 100, 10)
    assert larger.known("primal", 100, 10)
    assert not larger.known("dual", 100, 10)


def test_a_cell_stays_skipped_as_long_as_its_reason_holds(small):
    known(small, "dual", 100, 10, "oom")
    known(small, "dual", 200, 10, "skipped", detail="oom at n = 100", implied_by=100)
    known(small, "dual", 100, 150, "skipped", detail="no time left in the sweep's budget")
    assert small.known("dual", 200, 10)
    assert not with_study(small, stop_after_failure=False).known("dual", 200, 10)
    assert small.known("dual", 100, 150)
    assert not with_study(small, sweep_budget_s=9999).known("dual", 100, 150)
    small.path("dual", 100, 10).unlink()
    assert not small.known("dual", 200, 10)


def test_a_missing_dependency_is_tried_again_unless_a_package_is_absent(small, monkeypatch):
    known(small, "primal-keops", 100, 10, "missing_dependency")
    assert not small.known("primal-keops", 100, 10)  # KeOps is here: it was CUDA that was missing
    monkeypatch.setattr(type(mmdma_core.variant("primal-keops")), "absent", lambda self: ("pykeops",))
    known(small, "primal-keops", 100, 10, "missing_dependency")
    assert small.known("primal-keops", 100, 10)


def test_the_plan_counts_and_estimates(small, monkeypatch):
    total = 4 * len(mmdma_core.variants())
    assert len(Plan(small).remaining()) == Plan(small).total == total
    known(small, "primal", 100, 10, epoch_s=[0.01] * 5)
    known(small, "dual", 100, 10, "oom")
    plan = Plan(small)
    assert len(plan.remaining()) == total - 2
    overhead = benchmarks.plan._OVERHEAD_S["cpu"]
    # n = 200 after n = 100: an epoch about four times as long; one of the first start, one to warm up, 5 timed ones
    assert plan.forecasts()["primal", 10].seconds == pytest.approx(7 * 0.04 + overhead, rel=0.01)
    assert plan.forecasts()["dual", 10].seconds == 0
    costless = dataclasses.replace(mmdma_core.variant("dual"), cost_model=None)
    monkeypatch.setitem(mmdma_core.registry._VARIANTS, "dual", costless)
    assert plan.forecasts()["dual", 150].seconds == pytest.approx(2 * (small.cell_budget_s + overhead), rel=0.01)
    assert f"{total} measurements, 2 known, {total - 2} to run" in describe(small)


def test_the_time_left_is_shared_out_among_devices(small):
    plan = Plan(small)
    sweeps = len(list(small.sweeps()))
    alone, two, all_at_once = (plan.seconds_left(devices) for devices in (1, 2, sweeps))
    assert alone / 2 <= two < alone
    assert alone / sweeps <= all_at_once < two
    assert all_at_once == plan.seconds_left(2 * sweeps)  # no less than the longest sweep
    assert "on 2 devices at once" in describe(small, 2)


def test_durations_in_words():
    assert [duration(s) for s in (4.4, 600, 12_000)] == ["4 s", "10 min", "3.3 h"]


def test_a_sweep_with_a_cell_that_is_not_known_wants_a_new_done_marker_and_nothing_is_written(small):
    for n in small.n:
        known(small, "primal", n, 10)
    assert small.wanted_markers("primal", 10) == [small.done_marker("primal", 10, 0)]  # Snakemake has not run it yet
    for turn in (0, 1):
        records.write_atomically(small.done_marker("primal", 10, turn), "")
    assert small.wanted_markers("primal", 10) == [small.done_marker("primal", 10, 1)]
    assert small.wanted_markers("primal", 150) == [small.done_marker("primal", 150, 0)]
    assert small.wanted_markers("primal", 10, 150) == [small.done_marker("primal", p, 0) for p in (10, 150)]
    for n in small.n:
        known(small, "primal", n, 150)
    assert small.wanted_markers("primal", 10, 150) == [small.done_marker("primal", p, 0) for p in (10, 150)]
    for turn in (0, 1):
        records.write_atomically(small.done_marker("primal", 150, turn), "")
    assert small.wanted_markers("primal", 10, 150) == [small.done_marker("primal", p, 1) for p in (10, 150)]
    small.path("primal", 100, 10).unlink()
    before = sorted(small.root.rglob("*"))
    assert small.wanted_markers("primal", 10) == [small.done_marker("primal", 10, 2)]
    assert small.wanted_markers("primal", 150) == [small.done_marker("primal", 150, 1)]
    assert small.wanted_markers("primal", 10, 150) == [small.done_marker("primal", p, 2) for p in (10, 150)]
    assert sorted(small.root.rglob("*")) == before
