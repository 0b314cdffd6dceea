"""`gpu-check` on a CPU with small sizes: every step, a cut in the middle, what is known, planted faults."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import torch
import yaml
from conftest import ROOT, heed_interrupts, own_config
from test_faults import wait_until

from benchmarks import study
from benchmarks.experiments import gpu_check
from benchmarks.experiments.correctness import Deviation
from benchmarks.measuring import guard, records
from benchmarks.study import known_at

SMALL = ("gpu-check", "--device", "cpu", "--small", "--set", "machine=here")
WRITTEN_ANEW = {"steps.json", "machine.json"}


def start(project):
    """The command with the plugin of wrong variants, in a process of its own that takes signals."""
    changed = ("--set", "plugins=[wrong]", "--set", "studies.smoke.variants=[primal, crashes, primal-fourier]")
    environment = os.environ | {"PYTHONPATH": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *SMALL, *changed, "--out", "carried.tar.gz"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    )


def results(root):
    """When each check and each cell was written, and what was drawn."""
    paths = [*root.rglob("*.json"), *root.glob("report.html"), *root.glob("figures/*")]
    return {path: path.stat().st_mtime_ns for path in paths if path.name not in WRITTEN_ANEW}


@pytest.mark.slow
def test_a_cut_costs_no_result_and_faults_end_their_own_checks_alone(project):
    shutil.copy(ROOT / "tests" / "wrong.py", project)
    root = project / "results" / "here-small"
    first = start(project)
    wait_until(lambda: len(list(root.glob("gpu-check/correctness/*.json"))) >= 2, seconds=120)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130, said
    assert "== 1 of 8" in said
    assert "== 2 of 8" not in said
    assert set(json.loads((root / "gpu-check" / "steps.json").read_text())) == {"machine"}
    assert not list(root.rglob("*.part*"))
    before = results(root)

    second = start(project)
    said = second.communicate(timeout=500)[0]
    assert second.returncode == 0, said
    after = results(root)
    assert {path: after[path] for path in before} == before
    steps = json.loads((root / "gpu-check" / "steps.json").read_text())
    assert list(steps) == list(gpu_check.STEPS)
    assert all(step["done"] for step in steps.values()), said
    assert said.count("\n== ") + said.startswith("== ") == 8
    assert "wrong-gradient is wrong: gradient of x is off by" in said
    assert "crashes: error: SIGSEGV during" in said
    wrong = records.read(root / "gpu-check" / "correctness" / "wrong-gradient.json")
    assert wrong.metrics["more cells than features"] > 10
    assert max(records.read(root / "gpu-check" / "correctness" / "primal.json").metrics.values()) < 1
    assert "   products of float16 matrices round to the nearest\n" in said
    timed = records.read(root / "gpu-check" / "kernels" / "primal-fused.json").metrics
    assert [name for name in timed if "blocks" in name] == ["compact blocks", "wide blocks"]
    assert sum(name.startswith("tile of ") for name in timed) == 5
    assert all(milliseconds > 0 for name, milliseconds in timed.items() if name != "products truncate")
    assert (root / "records" / "primal-keops" / "p50" / "n1000.json").exists()
    assert (root / "citeseq" / "stand-in" / "citeseq.csv").exists()

    third = start(project)
    said = third.communicate(timeout=120)[0]
    assert third.returncode == 0, said
    assert results(root) == after
    with tarfile.open(project / "carried.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"here-small/gpu-check/steps.json", "here-small/report.html"} <= names
    assert "here-small/records/primal-fused/p10/n2000.json" in names


def test_what_has_no_time_is_told_and_nothing_is_measured(command, project):
    said = command(*SMALL, "--budget-s", "0.001")
    root = project / "results" / "here-small"
    assert "ran out of time: the machine, and what is missing; every variant against float64" in said
    assert "the same command again goes on" in said
    assert not list(root.glob("records/*/*/*.json"))
    assert not list(root.glob("gpu-check/*/*.json"))


def test_an_error_of_a_step_is_its_own(tmp_path, monkeypatch, capsys):
    def fails(visit):
        raise RuntimeError("no such\nGPU")

    steps = {
        "first": (0.5, fails, "the first"),
        "second": (1, lambda visit: gpu_check.Outcome(True, "all well", ["look at this"]), "the second"),
    }
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    config = own_config()
    config |= {"device": "cpu", "results": str(tmp_path), "machine": "here"}
    gpu_check.run(gpu_check.load(config, True, False, lambda study: tmp_path), 60)
    said = capsys.readouterr().out
    assert "== 1 of 2, the first: failed in 0 s: RuntimeError: no such GPU\n== 2 of 2, the second: done" in said
    assert "   look at this\ndone: the second\nfailed: the first\n" in said
    kept = json.loads((tmp_path / "here-small" / "gpu-check" / "steps.json").read_text())
    assert [kept[name]["how"] for name in steps] == ["failed", "done"]


def test_a_configuration_without_the_experiment_is_refused(command, project):
    config = project / "config.yaml"
    keys = yaml.safe_load(config.read_text())
    del keys["citeseq"]
    config.write_text(yaml.safe_dump(keys))
    assert "citeseq: the configuration has no such key" in command(*SMALL, status=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget-s", "0"), "more than 0 seconds"),
        (("--budget-s", "nan"), "more than 0 seconds"),
        (("--out", "carried.zip"), "must end in .tar.gz"),
        (("--device", "tpu"), "'tpu' is not allowed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(command, project, options, words):
    assert words in command(*SMALL, *options, status=2)
    assert not (project / "results" / "here-small").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_is_missing(command):
    assert "device: 'cuda' is asked for, but" in command("gpu-check", status=2)


@pytest.mark.parametrize(
    ("status", "known", "retried"),
    [("ok", True, True), ("error", True, False), ("timeout", True, False), ("skipped", False, False)],
)
def test_which_checks_are_known(tmp_path, status, known, retried):
    config = own_config()
    base = study.load(config | {"device": "cpu", "study": "smoke", "results": str(tmp_path), "machine": "here"})
    asked = gpu_check.Check.of(base, "correctness", "primal", gpu_check.SMALL)
    path = tmp_path / "primal.json"
    assert known_at(path, asked)[0] is None
    records.write(guard.new_record(asked, status, "", {}), path)
    assert (known_at(path, asked)[0] is not None) == known
    assert (known_at(path, asked, ["error", "timeout"])[0] is not None) == retried
    assert known_at(path, gpu_check.Check.of(base, "lacks", "primal", gpu_check.SMALL))[0] is None
    path.write_text("{")
    assert known_at(path, asked)[0] is None
    assert path.with_suffix(".unreadable").exists()


def test_a_deviation_that_is_no_number_is_not_within():
    assert Deviation("gradient of x", 1.0, 1.0).within
    assert not Deviation("gradient of x", math.nan, 1.0).within


def test_the_shares_of_the_budget_rise_to_all_of_it_and_stand_on_the_page():
    page = (ROOT / "docs" / "gpu.md").read_text()
    for name, (share, _, _) in gpu_check.STEPS.items():
        by = "all" if share == 1 else f"{100 * share:.0f} %"
        assert re.search(rf"^\| {name} \| .* \| {by} \|$", page, re.M), name
    shares = [share for share, _, _ in gpu_check.STEPS.values()]
    assert shares == sorted(shares)
    assert shares[-1] == 1
