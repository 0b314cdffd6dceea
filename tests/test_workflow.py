"""The real Snakefile on the smoke study, as a user runs it, and a plugin exactly as README has it."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from conftest import ROOT, copy_project, heed_interrupts, own_config

import mmdma_core
from benchmarks import figures
from benchmarks.measuring import records

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


VARIANTS = ["primal", "primal-keops", "dual", "primal-fused"]
CELLS = 4 * len(VARIANTS)
SMOKE = ("--config", "study=smoke", "machine=here", "device=cpu")


def options(arguments, cores=1):
    return [
        *(["--cores", str(cores)] if cores else []),
        *(["--resources", "gpu=1"] if cores == 1 else []),
        *arguments,
    ]


def run_snakemake(folder, *arguments, status=0, cores=1, **more):
    """Run Snakemake in a folder, `more` in its environment; the text of both streams in one."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | more
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [BIN / "snakemake", *options(arguments, cores)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture
def again(in_folder):
    """Snakemake in a fork of a process that has imported it, which spares each its three seconds of imports."""

    def run(folder, *arguments, status=0, cores=1):
        return in_folder(folder, *options(arguments, cores), program="snakemake", status=status)

    return run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke study of some variants, run once with more cores than a job needs; its project, Snakemake's words."""
    folder = copy_project(tmp_path_factory.mktemp("smoke") / "project")
    config = own_config()
    config["studies"]["smoke"]["variants"] = VARIANTS
    (folder / "config.yaml").write_text(yaml.safe_dump(config, default_flow_style=None, width=1000))
    return folder, run_snakemake(folder, *SMOKE, cores=4)


def test_the_study_measures_every_cell_and_draws_every_figure(smoke):
    folder, output = smoke
    root = folder / "results" / "here"
    summary = pd.read_csv(root / "summary.csv")
    assert len(summary) == CELLS
    assert set(summary["status"]) == {"ok"}
    assert (summary["runtime_s"] > 0).all()
    assert "primal-keops" in output
    assert "s/epoch" in output
    for name in figures.NAMES:
        assert (root / "figures" / f"{name}.png").stat().st_size > 5_000
    assert "Verdict" in (root / "report.html").read_text()
    assert "LSMMD-MA" in (root / "figures" / "figure_1b.svg").read_text()


def test_the_smoke_study_measures_every_variant_that_is_here(command, project):
    command("sweep", "--set", "study=smoke", "--set", "machine=here", "--set", "device=cpu")
    known = records.read_all(project / "results" / "here")
    found = {(record.variant, record.p, record.n): record.status for record in known}
    here = {name for name in mmdma_core.variants() if not mmdma_core.variant(name).absent()}
    expected = {name: "ok" if name in here else "missing_dependency" for name in mmdma_core.variants()}
    assert found == {(name, p, n): status for name, status in expected.items() for p in (10, 150) for n in (100, 200)}


@pytest.mark.alone
def test_the_harness_takes_little_time_of_a_cell(command, configure):
    root = configure({"n": [100, 200], "p": [10], "variants": VARIANTS})
    command("sweep")
    measured = records.read_all(root)
    assert len(measured) == 2 * len(VARIANTS)
    assert max(map(beyond_its_own_work, measured)) < 0.7


def beyond_its_own_work(record):
    """Seconds of a cell that the harness took for itself: fork, imports, limits, the record."""
    return (
        record.cell_s - record.data_s - record.first_start_s - record.prepare_s - record.warmup_s - sum(record.epoch_s)
    )


def test_no_two_sweeps_share_the_machine_whatever_cores_says(smoke):
    folder, output = smoke
    assert "another sweep" not in output
    paths = list((folder / "results" / "here").glob("records/*/*/*.json"))
    assert len(paths) == CELLS
    spans = []
    for path in paths:
        record, end = records.read(path), path.stat().st_mtime
        if not record.repeated:  # else the file may be younger than the measurement that stays
            spans.append((end - record.cell_s, end))
    spans.sort()
    assert all(first[1] <= second[0] + 0.05 for first, second in itertools.pairwise(spans))


def test_a_study_measures_and_draws_again_only_what_has_changed(smoke, again):
    folder, _ = smoke
    root = folder / "results" / "here"
    paths = sorted(root.glob("records/*/*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert "Nothing to be done" in again(folder, *SMOKE)

    deleted = records.record_path(root, "dual", 150, 200)
    deleted.unlink()
    held = sorted(root.rglob("*"))
    assert "sweep" in again(folder, *SMOKE, "-n")
    assert sorted(root.rglob("*")) == held  # a dry run changes nothing
    again(folder, *SMOKE)
    after = {path: path.stat().st_mtime_ns for path in paths}
    assert {path for path in paths if after[path] != before[path]} == {deleted}
    # The measuring process sets its own threads, whatever Snakemake exports.
    assert records.read(deleted).machine["cpu_threads"] == len(os.sched_getaffinity(0))

    legend_before = (root / "figures" / "figure_1b.svg").read_text()
    config = folder / "config.yaml"
    config.write_text(re.sub("figure_1b_p: .*", "figure_1b_p: [150]", config.read_text()))
    again(folder, *SMOKE)
    assert (root / "figures" / "figure_1b.svg").read_text() != legend_before

    again(folder, *SMOKE, "--report", "report.zip")
    assert (folder / "report.zip").stat().st_size > 10_000


def test_a_typo_stops_snakemake_before_anything_runs(again, project):
    output = again(project, "--config", "studdy=smoke", status=1)
    assert "unknown key 'studdy'; did you mean 'study'" in output
    with (project / "config.yaml").open("a") as file:
        file.write("seed: 4\nseed: 5\n")
    assert "column 1: the key 'seed' stands twice, first in line" in again(project, *SMOKE, "-n", status=1)
    assert not (project / "results" / "here").exists()


def test_a_study_ends_where_a_path_has_marks_of_the_shell_and_home_cannot_be_written(project, configure, tmp_path):
    (tmp_path / "file").touch()
    results = "m'y $r; ü & co"
    configure({"n": [60], "p": [10], "variants": ["primal", "primal-fused"]}, results=results)
    output = run_snakemake(project, "--until", "table", HOME=str(tmp_path / "file" / "home"))
    root = project / results / "here"
    assert [record.status for record in records.read_all(root)] == ["ok", "ok"]
    assert "s/epoch" in (root / "logs" / "primal" / "0.log").read_text()
    assert (root / "summary.csv").exists()
    assert output.count("caches: ") == 1  # what is decided holds for all jobs


def test_what_snakemake_prints_after_a_crash_works_as_it_stands(again, project):
    locks = project / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/here/summary.csv\n")
    assert "Unlocked" in again(project, "--unlock", cores=None)
    assert not list(locks.glob("*.lock"))


def test_the_workflow_lints(again, project):
    assert "good condition" in again(project, "--lint")


def test_ctrl_c_ends_snakemake_and_leaves_no_child(project):
    """A terminal sends SIGINT to the whole group of processes."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    study = subprocess.Popen(
        [BIN / "snakemake", "--cores", "1", "--resources", "gpu=1", *SMOKE],
        cwd=project,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    root = project / "results" / "here"
    from test_faults import wait_until

    wait_until(lambda: list(root.glob("records/*/*/*.json")), seconds=60)
    descendants = psutil.Process(study.pid).children(recursive=True)
    os.killpg(study.pid, 2)
    assert study.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(descendants, timeout=5)
    assert not alive
    for path in root.glob("records/*/*/*.json"):
        assert records.read(path).status in ("ok", "missing_dependency")
    assert not list(root.rglob("*.part"))


def test_the_plugin_of_readme_is_in_grid_figures_and_checks(command, configure, project):
    code = re.search(r"```python\n(\"\"\"primal-blocked.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (project / "primal_blocked.py").write_text(code)
    root = configure({"n": [100, 150], "p": [10], "variants": ["all"]}, plugins=["primal_blocked"])
    command("sweep", "--variant", "primal", "primal-blocked")
    assert records.read(records.record_path(root, "primal-blocked", 10, 150)).status == "ok"
    assert "primal-blocked" in command("table")
    command("figures")
    assert "primal, row blocks" in (root / "figures" / "runtimes_all.svg").read_text()
    edited = own_config() | {"plugins": ["primal_blocked"], "seed": 7, "machine": "mine", "study": "smoke"}
    (project / "config.yaml").write_text(yaml.safe_dump(edited))
    # Other tests follow neither the plugin nor what else is set.
    others = ["tests/test_config.py", "tests/test_figures.py"]
    asked = "primal-blocked or takes_variants_out or auto_is_the_laptop or groups_them"
    checks = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/test_variants.py", *others, "-k", asked, "-o", "pythonpath=."],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert checks.returncode == 0, checks.stdout
    assert re.search(r"\b16 passed", checks.stdout), checks.stdout


def test_environment_yaml_has_the_versions_of_constraints_txt():
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"][-1]["pip"]
    pinned = (ROOT / "constraints.txt").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment.remove(*project["optional-dependencies"]["keops-cuda"])  # PyTorch pins it
    assert set(environment) <= set(pinned)
    needed = {re.split("[>=]", line)[0].lower() for line in project["dependencies"]} - {"snakemake"}
    assert {line.split("==")[0].lower() for line in environment} == needed


def test_config_yaml_comments_every_key():
    text = (ROOT / "config.yaml").read_text()
    for key in yaml.safe_load(text):
        if key not in ("figures", "studies"):
            assert re.search(rf"^{key}:.*#", text, re.MULTILINE), key
