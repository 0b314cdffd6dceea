"""Which variants agree, cell by cell."""

import pandas as pd
import pytest

from benchmarks.reading import agreement

TERMS = {"early_total": 1.0, "early_mmd": 0.5, "early_pen_x": 3.0, "early_pen_y": 4.0, "early_dis_x": 5.0}
SAME = TERMS | {"early_dis_y": 6.0, "status": "ok", "n": 100, "p": 10}


def table(**changed):
    return pd.DataFrame([{"variant": name} | SAME | values for name, values in changed.items()])


@pytest.mark.parametrize(
    ("term", "near", "far"),
    [("mmd", 0.50005, 0.502), ("pen_x", 3.002, 3.01), ("dis_y", 6.003, 6.01)],
)
def test_a_variant_that_computes_something_else_stands_apart(term, near, far):
    found = agreement.losses(table(a={}, b={f"early_{term}": near}, c={f"early_{term}": far}, d={"status": "oom"}))
    assert found["agree"].tolist() == ["a = b | c"]
    assert list(found.columns) == ["n", "p", "agree", "a", "b", "c"]


def test_each_cell_has_its_row_and_a_variant_that_did_not_end_there_no_loss(tmp_path):
    path = agreement.write_losses(table(a={}, b={"n": 200}), tmp_path)
    found = pd.read_csv(path)
    assert found["agree"].tolist() == ["a", "b"]
    assert found["b"].isna().tolist() == [True, False]
