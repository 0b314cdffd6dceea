"""Tables of text: what is taken for a name and what for a number."""

import numpy as np
import pandas as pd
import pytest
from refusals import refused

from mmdma_core.files.io import read_view

DENSE = np.array([[0.0, 1.5, 0.0], [2.25, 0.0, 0.1]])
CELLS, FEATURES = ("c1", "c2"), ("g1", "g2", "g3")


@pytest.mark.parametrize(
    ("text", "cells", "features"),
    [
        ("0,1.5,0\n2.25,0,1e-1\n", None, None),
        ("0\t1.5\t0\r\n2.25\t0\t.1\r\n", None, None),
        ("0 1.5 0\n 2.25   0  0.1 \n\n", None, None),
        ("0;1.5;0\n2.25;0;0.1", None, None),
        ("\n0,1.5,0\n\n2.25,0,0.1\n", None, None),
        ("g1,g2,g3\n0,1.5,0\n2.25,0,0.1\n", None, FEATURES),
        ("\n\ng1,g2,g3\n\n0,1.5,0\n2.25,0,0.1\n", None, FEATURES),
        ("c1,0,1.5,0\nc2,2.25,0,0.1\n", CELLS, None),
        ("cell\tg1\tg2\tg3\nc1\t0\t1.5\t0\nc2\t2.25\t0\t0.1\n", CELLS, FEATURES),
        ("\ufeffcell,g1,g2,g3\nc1,0,1.5,0\nc2,2.25,0,0.1\n", CELLS, FEATURES),  # Excel
        ('"g1" "g2" "g3"\n"c1" 0 1.5 0\n"c2" 2.25 0 0.1\n', CELLS, FEATURES),  # write.table of R
        ('"","g1","g2","g3"\n"c1",0,1.5,0\n"c2",2.25,0,0.1\n', CELLS, FEATURES),  # write.csv of R
        (",7157,672,-1\nc1,0,1.5,0\nc2,2.25,0,0.1\n", CELLS, ("7157", "672", "-1")),
        (pd.DataFrame(DENSE).to_csv(), ("0", "1"), ("0", "1", "2")),
        (pd.DataFrame(DENSE, index=["007", "NA"], columns=FEATURES).to_csv(), ("007", "NA"), FEATURES),
        ('"T cell, 1",0,1.5,0\n"T cell, 2",2.25,0,0.1\n', ("T cell, 1", "T cell, 2"), None),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".TXT"])
def test_text(tmp_path, text, cells, features, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text(text, encoding="utf-8", newline="")
    view = read_view(path)
    assert (view.cells, view.features) == (cells, features)
    assert view.matrix.dtype == np.float64
    np.testing.assert_allclose(view.matrix, DENSE, rtol=1e-15)
    turned = read_view(path, transpose=True)
    assert (turned.cells, turned.features, turned.matrix.shape) == (features, cells, (3, 2))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2\n3,x\n", ["row 2, column 2 holds 'x'"]),
        ("cell,g1,g2\nc1,1,2\nc2,NA,3\n", ["row 'c2', column 'g1' holds 'NA'"]),
        ("g1,g2\n1,2\n3,nan\n", ["row 2, column 'g2' holds 'nan'"]),
        ("1,\n3,4\n", ["row 1, column 2 holds ''"]),
        ("NA,2\n3,4\n", ["row 1, column 1 holds 'NA'"]),  # no row of names: a row of data would be lost
        ("x1,2,g3\n1,2,3\n", ["row 'x1', column 2 holds 'g3'"]),
        ("1,2\n3,4\n5\n", ["cannot be read as a table", "line 3 has fields: 1, those before it: 2"]),
        ("1,2\n3,1_0\n", ["row 2, column 2 holds '1_0'"]),
        ("1,2\n3,True\n", ["row 2, column 2 holds 'True'"]),
        ("1;2,5\n3;4\n5;6\n", ["row 1, column 2 holds '2,5'"]),  # nor for this
        ("1,2\n3,inf\n", ["must be finite in float64, row 2, column 2 holds inf"]),
        ("1,2\n3,4\n5,6,7\n", ["cannot be read as a table", "line 3"]),
        ("g1,g2,g3\n1,2\n3,4\n", ["the first row has 3 fields and the second 2"]),
        ("g1,g2\n", ["cannot be read as a table"]),
        ("1,2\n3,4\0 5\n", ["cannot be read as a table", "NUL"]),
        ("\n\n", ["is empty"]),
        ("c1,1\nc1,2\n", ["cell names must differ, 'c1' occurs 2 times"]),
        ("1,2\n", ["at least 2 cells and 1 feature", "(1, 2)"]),
        ("c1\nc2\nc3\n", ["at least 2 cells and 1 feature", "(2, 0)"]),
        ("caf\udce9,1\n", ["cannot be read as a table"]),
    ],
)
def test_text_that_is_refused(tmp_path, text, parts):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    refused(lambda: read_view(path), str(path), *parts)


def test_what_is_not_finite_is_named_as_cell_and_feature(tmp_path):
    (tmp_path / "x.csv").write_text("gene,c1,c2\ng1,1,-inf\ng2,3,4\n")
    refused(lambda: read_view(tmp_path / "x.csv", transpose=True), "row 'c2', column 'g1' holds -inf")
