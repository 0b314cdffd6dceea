"""The rooms: an import that runs upwards or in a circle is found, public names stay, and CI accepts no other skip."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import mmdma_core

BIN = Path(sys.executable).parent


# (file, line planted there, contract that it breaks, what stands under that contract then)
PLANTED = [
    (
        "mmdma_core/objective.py",
        "from mmdma_core.matching import metrics",
        "A room of mmdma_core imports",
        "mmdma_core.objective -> mmdma_core.matching.metrics",
    ),
    (
        "mmdma_core/run.py",
        "def f():\n    from mmdma_core.fused import run",
        "A room of mmdma_core imports",
        "mmdma_core.run -> mmdma_core.fused.run",
    ),
    (
        "mmdma_core/fused/run.py",
        "from mmdma_core import Settings",
        "No room of mmdma_core imports the public face",
        "mmdma_core.fused.run -> mmdma_core ",
    ),
    (
        "mmdma_core/models.py",
        "import benchmarks.plan",
        "Nothing in mmdma_core knows",
        "mmdma_core.models -> benchmarks.plan",
    ),
    (
        "mmdma_core/matching/model_file.py",
        "from mmdma_core.matching.estimator import MMDMA",
        "No circle",
        "- .model_file -> .estimator",
    ),
    (
        "benchmarks/analysis/published.py",
        "from benchmarks.figures import style",
        "A room of benchmarks imports",
        "benchmarks.analysis.published -> benchmarks.figures.style",
    ),
    (
        "mmdma_core/external/published.py",
        "from mmdma_core.external import original_2019",
        "The implementations of",
        "mmdma_core.external.published -> mmdma_core.external.original_2019",
    ),
    (
        "benchmarks/figures/curves.py",
        "from benchmarks.figures import heatmap",
        "The figures are independent",
        "benchmarks.figures.curves -> benchmarks.figures.heatmap",
    ),
    ("mmdma_core/attic.py", "", "A room of mmdma_core imports", "mmdma_core.attic"),  # a room that no rule knows
]


def lint(folder, planted=()):
    """What lint-imports prints of a copy of the project with these lines planted, and its status."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("mmdma_core", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, line, *_ in planted:
        with (folder / path).open("a") as file:
            file.write(f"\n{line}\n")
    done = subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    return done.stdout, done.returncode


def test_no_import_runs_upwards(tmp_path):
    said, status = lint(tmp_path)
    assert (" BROKEN" in said, status) == (False, 0), said


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Contract -> what lint-imports says under it, where all lines are planted at once."""
    said, status = lint(tmp_path_factory.mktemp("house"), PLANTED)
    assert status != 0
    names = re.findall(r"^(.+) BROKEN$", said, re.M)
    under = re.split(rf"^({'|'.join(map(re.escape, names))})\n-+$", said, flags=re.M)
    return dict(zip(under[1::2], under[2::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("path", "line", "contract", "words"), PLANTED, ids=lambda value: value[:40])
def test_a_planted_import_is_found(broken, path, line, contract, words):
    (said,) = (said for name, said in broken.items() if name.startswith(contract))
    assert words in said


def test_every_room_says_what_it_is_for():
    for package in ("mmdma_core", "benchmarks"):
        for folder in (ROOT / package).iterdir():
            if list(folder.glob("*.py")):
                assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_the_public_names():
    assert all(hasattr(mmdma_core, name) for name in mmdma_core.__all__)
    from mmdma_core import io, metrics

    assert callable(io.read_view)
    assert callable(metrics.foscttm)
    with pytest.raises(AttributeError, match="no attribute 'estimator'"):
        getattr(mmdma_core, "estimator")  # noqa: B009


@pytest.mark.parametrize(("mark", "status"), [("", 1), ("@pytest.mark.gpu", 0)])
def test_where_ci_is_set_a_skip_is_a_failure(tmp_path, mark, status):
    (tmp_path / "test_it.py").write_text(f"import pytest\n{mark}\ndef test_it():\n    pytest.skip('no such package')\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "conftest",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            tmp_path,
            ".",
        ],
        cwd=tmp_path,
        env=os.environ | {"CI": "true", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("skipped where CI is set" in done.stdout) == bool(status)


def test_a_plugin_beside_config_yaml_is_as_its_author_likes(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    own = {"benchmarks/a/b.py", "mmdma_core/a.py", "tests/a.py", "docs/a.py", "examples/a.py"}
    for name in ("primal_blocked.py", "my_plugins/one.py", *own):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("import os\n")
    ruff = [BIN / "ruff", "check", "--output-format", "concise", "--no-cache"]
    said = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True).stdout
    found = {line.partition(":")[0] for line in said.splitlines() if "F401" in line}
    assert found == own
