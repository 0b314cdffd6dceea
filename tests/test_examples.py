"""The examples run and print what lies beside them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REAL_DATA, ROOT

from mmdma_core import simulate

pytestmark = pytest.mark.slow


def printed(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_read_study_prints_what_lies_beside_it():
    output = printed("examples/read_study.py", "results/laptop-amd-epyc-2-cores")
    assert output == (ROOT / "examples" / "read_study.txt").read_text()


def test_match_snareseq_runs_on_a_small_stand_in(tmp_path):
    x, y, match = simulate("branch", 40, 8, p_y=6)
    folder = tmp_path / "snareseq"
    folder.mkdir()
    for name, view in (("atac", x), ("rna", y[match])):
        np.save(folder / f"SNAREseq_{name}_feat.npy", view.numpy())
        np.savetxt(folder / f"SNAREseq_{name}_types.txt", np.arange(40) % 3, fmt="%d")
    output = printed("examples/match_snareseq.py", str(tmp_path))
    assert "accessibility (40, 8), expression (40, 6)" in output
    assert output.count(", random: ") == 4
    assert ", symmetries: " in output
    assert "label_transfer_accuracy: " in output


@pytest.mark.real_data
def test_match_snareseq_prints_what_lies_beside_it():
    output, kept = printed("examples/match_snareseq.py", str(REAL_DATA)), ROOT / "examples" / "match_snareseq.txt"
    words = {line.split(":")[0] for line in output.splitlines()}
    assert words == {line.split(":")[0] for line in kept.read_text().splitlines()}
    foscttm = next(float(line.split()[1]) for line in output.splitlines() if line.startswith("  foscttm"))
    assert foscttm <= 0.16
