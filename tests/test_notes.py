"""What a reader of metrics must know is printed by `mmdma fit` and `mmdma evaluate`."""

import json

import numpy as np
import pytest

from mmdma_core.__main__ import main

pytestmark = pytest.mark.slow
FIT = ["--n-epochs", "2", "--n-starts", "1", "--loss-every", "1", "--random-state", "0", "--n-components", "2"]


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_notes_are_printed(tmp_path, monkeypatch, caplog, command):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((8, 3)))
    np.save("y.npy", np.random.default_rng(0).normal(size=(8, 3)))
    np.save("labels.npy", np.arange(8) % 2)
    out = ["fit", *FIT, "--quiet", "--out", "out"] if command == "fit" else ["evaluate", "--out", "out.json"]
    assert main([*out, "--x", "x.npy", "--y", "y.npy", "--same-cells", "--labels", "labels.npy"]) == 0
    printed = [record.getMessage() for record in caplog.records if record.getMessage().startswith("note: ")]
    found = json.loads((tmp_path / ("out/metrics.json" if command == "fit" else "out.json")).read_text())
    assert printed == [f"note: {note}" for note in found["notes"]]
    assert printed[0] == "note: all 8 cells of x lie at one point: no metric can tell them apart"
    assert found["values"]["foscttm"] == 0.5
    assert sum("n_neighbors = 5 is more than half" in note for note in printed) == 1
