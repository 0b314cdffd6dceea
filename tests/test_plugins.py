"""What a plugin does while it is imported touches its own cells alone, and is said with its name."""

import textwrap

import pytest

from benchmarks.measuring import records

VARIANT = """
import torch
from mmdma_core import Primal, TorchRun, register
from mmdma_core.kernels import gaussian_kernel
from mmdma_core import models

def sums(a, b, s):
    k = lambda u, v: gaussian_kernel(u, v, s).sum(dtype=torch.float64)
    return k(a, a) - len(a), k(b, b) - len(b), k(a, b)

@register("{name}", label="of a plugin", reference="here", requires={requires},
          **models.composed(models.primal, models.dense) | {{"cost_model": {cost}}})
def start(x, y, settings, device, seed, parameters):
    return TorchRun((Primal(x), Primal(y)), sums, settings, x, seed, parameters)
"""
DOES = {
    "computes": "torch.linspace(0, 10, 4_000_000).exp().sum()",
    "sets PyTorch's threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "seeds PyTorch": "torch.manual_seed(11)",
    "draws from or seeds NumPy's random numbers": "import numpy; numpy.random.seed(3)",
    "changes the environment": "import os; os.environ['OMP_NUM_THREADS'] = '7'",
    "prints": "print('hello')",
    "starts threads": "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "warns": "import warnings; warnings.warn('old')",
}
ENDS = {
    "import sys; sys.exit(0)": "it ends Python, by sys.exit(0)",
    "import os; os._exit(0)": "it ends Python, by exit status 0",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "it ends Python, by SIGSEGV",
    "import argparse; argparse.ArgumentParser().parse_args(['--no'])": "it ends Python, by sys.exit(2)",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "print('before'); import torch; torch.no_such_thing": "module 'torch' has no attribute 'no_such_thing'",
    "import": "SyntaxError",
}


COST = "models.composed(models.primal, models.dense)['cost_model']"


@pytest.fixture
def plugin(project):
    def write(
        module,
        head="",
        name="of-a-plugin",
        requires=(),
        cost=COST,
    ):
        body = textwrap.dedent(head) + "\n" + VARIANT.format(name=name, requires=requires, cost=cost)
        (project / f"{module}.py").write_text(body)
        return module

    return write


def losses(root):
    found = records.read_all(root)
    assert {record.status for record in found} == {"ok"}, [record.detail for record in found]
    return {record.variant: record.losses["early"] for record in found}


def test_nothing_that_an_import_does_reaches_another_variant(plugin, project, command, configure):
    study = {"n": [100], "p": [10], "variants": ["primal", "primal-fused"]}
    configure(study, machine="without")
    command("sweep")
    alone = losses(project / "results" / "without")
    plugin("busy", "import torch\n" + "\n".join(DOES.values()))
    configure(study | {"variants": [*study["variants"], "of-a-plugin"]}, plugins=["busy"], machine="with")
    said = command("sweep")
    found = losses(project / "results" / "with")
    assert {name: found[name] for name in alone} == alone
    assert found["of-a-plugin"] == pytest.approx(alone["primal"], rel=1e-5)
    (note,) = (line for line in said.splitlines() if "plugin 'busy'" in line)
    assert all(what in note for what in DOES if what not in ("computes", "warns"))
    assert "hello" not in said
    assert "old" not in said


@pytest.mark.parametrize("body", ENDS)
def test_a_plugin_that_ends_python_is_one_line_with_its_name(project, command, configure, body):
    (project / "leaves.py").write_text(body)
    configure({"n": [100], "p": [10], "variants": ["primal"]}, plugins=["leaves"])
    for asked in ("check", "sweep"):
        (line,) = command(asked, status=2).strip().splitlines()
        assert line.startswith("error: plugins: 'leaves' cannot be imported: ")
        assert ENDS[body] in line


def test_a_plugin_that_does_not_end_is_told_from_one_that_takes_long(project, command, configure, monkeypatch):
    (project / "waits.py").write_text("import time\ntime.sleep(1000)")
    (project / "stand_ins").write_text("impatient")
    (project / "impatient.py").write_text("from benchmarks.study import plugins\nplugins.LIMIT_S = 1.0")
    configure({"n": [100], "p": [10], "variants": ["primal"]}, plugins=["waits"])
    assert "'waits' cannot be imported: it did not end within 1 s" in command("check", status=2)


def test_its_models_answer_from_its_own_process(plugin, project, command, configure):
    plugin("modelled", name="cheap")
    plugin("unwell", name="unwell", cost="lambda n, p, d: 1 / 0")
    configure({"n": [100], "p": [10], "variants": ["cheap"]}, plugins=["modelled"])
    assert "states no cost" in command("plan")
    assert "cheap" in command("advise", "--n", 500, "--p", 20)
    configure({"n": [100], "p": [10], "variants": ["unwell"]}, plugins=["unwell"])
    assert "ZeroDivisionError" in command("plan", status=2)


def test_what_it_requires_is_imported_in_its_cells_alone(plugin, project, command, configure):
    (project / "heavy.py").write_text("import os\nprint(os.getppid(), file=open('imported', 'a'))")
    plugin("needs", requires=("heavy",))
    plugin("lacks", name="lacks", requires=("not_there",))
    study = {"n": [100], "p": [10], "variants": ["primal", "of-a-plugin", "lacks"]}
    root = configure(study, plugins=["needs", "lacks"])
    command("sweep")
    found = {record.variant: record for record in records.read_all(root)}
    assert {name: record.status for name, record in found.items()} == {
        "primal": "ok", "of-a-plugin": "ok", "lacks": "missing_dependency",
    }  # fmt: skip
    assert found["lacks"].missing == ["not_there"]
    assert not (project / "imported").exists()  # nobody imports it: the variant itself does not either
    (project / "not_there.py").write_text("")
    assert command("sweep").startswith("lacks  ")  # asked again


def test_a_plugin_in_a_package_counts_with_what_lies_beside_it(plugin, project, command, configure):
    (project / "lab").mkdir()
    (project / "lab" / "__init__.py").write_text("print('the package of the lab')")
    (project / "lab" / "helper.py").write_text("FACTOR = 1")
    plugin("lab/blocked", "from lab.helper import FACTOR\n", name="lab.blocked")
    blocked = project / "lab" / "blocked.py"
    blocked.write_text(blocked.read_text().replace("return k(a, a)", "return FACTOR * k(a, a)"))
    root = configure({"n": [100], "p": [10], "variants": ["lab.blocked"]}, plugins=["lab.blocked"])
    command("sweep")
    key = records.read(records.record_path(root, "lab.blocked", 10, 100)).key
    assert (
        command("sweep")
        == "note: plugin 'lab.blocked' prints while it is imported: only its own measurements see that\n"
    )
    (project / "lab" / "helper.py").write_text("FACTOR = 2")
    command("sweep")
    assert records.read(records.record_path(root, "lab.blocked", 10, 100)).key != key


def test_names_that_are_taken_are_refused_with_the_plugin(plugin, project, command, configure):
    plugin("again", name="Primal")
    configure({"n": [100], "p": [10], "variants": ["primal"]}, plugins=["again"])
    said = command("check", status=2)
    assert "'again' cannot be imported: ValueError: a variant named 'primal' is registered already" in said
