"""What a reader must know of a fit and its metrics: notes that are printed, warnings, the log."""

import json
import re
import warnings

import numpy as np
import pytest
from embeddings import PLAIN

from mmdma_core import MMDMA, simulate
from mmdma_core.matching.command_line import main

FIT = ["--n-epochs", "2", "--n-starts", "1", "--loss-every", "1", "--random-state", "0", "--n-components", "2"]


@pytest.mark.slow
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


@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_a_warning_names_the_line_of_the_caller(method):
    x, y, _ = simulate("branch", 30, 3)
    model = MMDMA("primal", n_components=4, n_epochs=2, n_starts=2, random_state=0, **PLAIN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        getattr(model, method)(x, y)
    assert [(warning.filename, warning.category) for warning in caught] == [(__file__, UserWarning)] * 2
    assert "n_components = 4 exceeds the shape (30, 3) of x" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="n_components = 4"):
            model.fit(x, y)


def test_the_log_tells_a_size_that_can_be_read(caplog):
    x, y, _ = simulate("branch", 30, 3)
    with caplog.at_level("INFO"):
        MMDMA(n_components=2, n_epochs=1, n_starts=1, random_state=0).fit(x, y)
    assert re.search(r"variant: [\w-]+: .*; about [\d.]+ KiB$", caplog.text, re.MULTILINE)
