"""A folder that a group shares: what is written has the rights that umask and folder give, so that all go on in it."""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
from conftest import ROOT
from embeddings import PLAIN_OPTIONS

from benchmarks.measuring import device, records

_STUDY = "--set study=smoke --set machine=t --set results=r --set device=cpu"
_SWEEP = f"{_STUDY} --variant primal --p 10 --n"
_FIT = "--variant primal --n-epochs 2 --n-starts 1 --device cpu --random-state 0 --quiet --checkpoint c"
_FIT += f" {' '.join(PLAIN_OPTIONS)} --out"
# As another user of the group: root without the powers that let it into what is not its own.
_COLLEAGUE = [
    "setpriv",
    *(f"--{kind}=-dac_override,-dac_read_search,-fowner,-chown" for kind in ("bounding-set", "inh-caps")),
]


def run(folder, commands, before=()):
    """The commands, of `benchmarks` and `mmdma`, in forks of one process whose umask is 002, see commands.py."""
    said, requests = folder.parent / "said.txt", []
    for program, *arguments in map(str.split, commands):
        asked = {"program": program, "folder": str(folder), "arguments": arguments, "output": str(said)}
        requests.append(json.dumps(asked))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMDMA_LOCK": "rights"}
    server = [sys.executable, ROOT / "tests" / "commands.py"]
    done = subprocess.run(
        [*before, "bash", "-c", 'umask 002; exec "$@"', "bash", *server],
        input="\n".join(requests),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["0"] * len(requests), said.read_text() + done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory, config_file):
    """A folder of a group, in which one has measured, drawn and fitted."""
    folder = tmp_path_factory.mktemp("shared") / "folder"
    folder.mkdir()
    os.chmod(folder, 0o2775)
    make = "import anndata, numpy as np, sys; r = np.random.default_rng(0)\nfor k in 'xy':\n"
    make += " anndata.AnnData(r.normal(size=(30, 5))).write_h5ad(k + '.h5ad')"
    subprocess.run([sys.executable, "-c", make], cwd=folder, check=True)
    for name in "xy":  # as downloads may be; what is made of them is the group's all the same
        os.chmod(folder / f"{name}.h5ad", 0o440)
    config = f"--config {config_file}"
    run(
        folder,
        [
            f"benchmarks sweep {config} {_SWEEP} 100",
            *(f"benchmarks {command} {config} {_STUDY}" for command in ("table", "figures", "report")),
            f"mmdma fit --x x.h5ad --y y.h5ad {_FIT} fitted",
        ],
    )
    return folder


@pytest.mark.slow
def test_what_is_written_has_the_rights_that_umask_and_folder_give(shared):
    inputs = [shared / f"{name}.h5ad" for name in "xy"]
    made = [path for path in shared.rglob("*") if path not in inputs]
    modes = {path.relative_to(shared): stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {"r/t/model.txt", "r/t/report.html", "fitted/model.npz", "fitted/x.h5ad", "c"} <= set(map(str, modes))
    wrong = {
        str(path): oct(mode) for path, mode in modes.items() if mode != (0o2775 if (shared / path).is_dir() else 0o664)
    }
    assert not wrong


@pytest.mark.slow
@pytest.mark.users
def test_a_colleague_goes_on_in_the_folder(shared, config_file):
    for path in (shared, *shared.rglob("*")):
        os.chown(path, 1000, -1)
    config = f"--config {config_file}"
    run(
        shared,
        [
            f"benchmarks sweep {config} {_SWEEP} 200",
            f"benchmarks table {config} {_STUDY}",
            f"mmdma fit --x x.h5ad --y y.h5ad {_FIT} fitted --overwrite",
        ],
        _COLLEAGUE,
    )
    found = records.read_folder(shared / "r" / "t").records
    assert [(record.n, record.status) for record in found] == [(100, "ok"), (200, "ok")]


@pytest.mark.slow
@pytest.mark.users
def test_a_model_that_another_has_written_for_itself_alone_is_told_by_the_records(shared):
    """As versions before did, which gave it to its owner alone."""
    owner = shared / "r" / "t" / "model.txt"
    os.chown(owner, 1000, -1)
    os.chmod(owner, 0o600)
    code = "from pathlib import Path; from benchmarks.measuring import device, machine\n"
    code += "device._check_model(machine.model('cpu'), Path('r/t')); device._check_model('another', Path('r/t'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*_COLLEAGUE, sys.executable, "-c", code], cwd=shared, env=environment, capture_output=True, text=True
    )
    assert re.search("WrongDevice: .* holds measurements of .* has another: ", done.stderr)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077])
def test_the_model_of_a_folder_has_the_rights_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        device._check_model("a model", tmp_path / "m")
    finally:
        os.umask(before)
    (path,) = (tmp_path / "m").iterdir()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("a model", 0o666 & ~mask)
