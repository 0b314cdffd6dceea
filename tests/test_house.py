"""The rooms: an import that runs upwards or in a circle is found, public names stay, and CI accepts no other skip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import mmdma_core

BIN = Path(sys.executable).parent


@pytest.fixture
def house(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("mmdma_core", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def broken(folder):
    """The contracts that lint-imports finds broken there."""
    done = subprocess.run(
        [BIN / "lint-imports", "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    found = [line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")]
    assert bool(found) == (done.returncode != 0), done.stdout + done.stderr
    return found


def test_no_import_runs_upwards(house):
    assert broken(house) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("mmdma_core/objective.py", "from mmdma_core.matching import metrics", "A room of mmdma_core imports"),
        (
            "mmdma_core/run.py",
            "def f():\n    from mmdma_core.fused import run",
            "A room of mmdma_core imports",
        ),
        ("mmdma_core/fused/run.py", "from mmdma_core import Settings", "No room of mmdma_core imports the public face"),
        ("mmdma_core/models.py", "import benchmarks.plan", "Nothing in mmdma_core knows"),
        ("mmdma_core/matching/model_file.py", "from mmdma_core.matching.estimator import MMDMA", "No circle"),
        ("benchmarks/analysis/published.py", "from benchmarks.figures import style", "A room of benchmarks imports"),
        ("mmdma_core/external/published.py", "from mmdma_core.external import original_2019", "The implementations of"),
        ("benchmarks/figures/curves.py", "from benchmarks.figures import heatmap", "The figures are independent"),
        ("mmdma_core/attic.py", "", "A room of mmdma_core imports"),  # a room that no rule knows
    ],
)
def test_a_planted_import_is_found(house, path, line, contract):
    with (house / path).open("a") as file:
        file.write(f"\n{line}\n")
    assert any(name.startswith(contract) for name in broken(house))


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
