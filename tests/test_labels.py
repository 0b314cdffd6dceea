"""Labels as people have them: with gaps, headings, quotes and names, in another order than the cells."""

import gzip

import numpy as np
import pandas as pd
import pytest
from refusals import refused

from mmdma_core.files.io import View, read_labels
from mmdma_core.matching import pictures

CELLS = ("c1", "c2", "c3", "c4")


def view(cells=CELLS):
    return View(np.zeros((4, 2)), cells, None, None, "x.npy")


def read(tmp_path, name, text, cells=CELLS, encoding="utf-8"):
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return read_labels(tmp_path / name, 4, view(cells)).tolist()


@pytest.mark.parametrize("cells", [CELLS, None])
@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "T cell\nB\nT cell\nB\n", ["T cell", "B", "T cell", "B"]),
        ("l.txt", "T\n\nNA\nB\n", ["T", None, None, "B"]),
        ("l.txt", "T\nnan\nB\n\n", ["T", None, "B", None]),
        ("l.txt", "T\nB\nB\nT\n\n\n", ["T", "B", "B", "T"]),
        ("l.csv", "cell_type\nT\nNone\nB\nB\n", ["T", None, "B", "B"]),
        ("l.csv", "cluster\r\n3\r\n1\r\n\r\n1\r\n", [3, 1, None, 1]),
        ("l.csv", "0\nT\nB\nT\nB\n", ["T", "B", "T", "B"]),  # a series of pandas without a name
        ("l.tsv", "3.0\nNaN\n1.0\n2.0\n", [3, None, 1, 2]),
        ("l.csv", '"x"\n"T, 1"\n"B"\n"B"\n"B"\n', ["T, 1", "B", "B", "B"]),  # R, without row names
        ("l.csv", '"","x"\n"1","T"\n"2",NA\n"3","B"\n"4","T"\n', ["T", None, "B", "T"]),  # R, with them
        ("l.txt", '"x"\n"1" "T cell"\n"2" "B"\n"3" "B"\n"4" "T cell"\n', ["T cell", "B", "B", "T cell"]),
        ("l.txt", '"T cell"\n"B"\n"B"\n"T cell"\n', ["T cell", "B", "B", "T cell"]),
        ("l.csv", ",leiden\n0,5\n1,5\n2,\n3,2\n", [5, 5, None, 2]),  # pandas
        ("l.txt", "x\n1 T cell\n2 B\n3 B\n4 T cell\n", ["T cell", "B", "B", "T cell"]),  # R, without quotes
        ("l.csv.gz", "T\nB\nB\nT\n", ["T", "B", "B", "T"]),
    ],
)
def test_labels_in_the_order_of_the_cells(tmp_path, name, text, labels, cells):
    assert read(tmp_path, name, text, cells) == labels


@pytest.mark.parametrize(
    ("name", "text", "labels", "said"),
    [
        ("l.csv", "barcode,type\nc3,B\nc1,T\nc4,A\nc2,T\n", ["T", "T", "B", "A"], ["'barcode', 'type', is a heading"]),
        ("l.csv", "c3,B\nc1,B\nc4,B\nc2,T\n", ["B", "T", "B", "B"], []),
        (
            "l.tsv",
            "c3\tB\nc1\tT\nc9\tB\nc8\tB\nc2\tT\n",
            ["T", "T", "B", None],
            ["2 of 5 labels are for no cell"],
        ),
        ("l.csv", "cell;type\nc3;\nc1;T\nc4;B\nc2;T\n", ["T", "T", None, "B"], ["1 of 4 cells have none"]),
        ("l.txt", '"x"\n"c2" "T 1"\n"c1" "B"\n"c3" "B"\n"c4" "B"\n', ["B", "T 1", "B", "B"], []),
        ("l.txt", "c2 T 1\nc1 B\nc3 B\nc4 B\n", ["B", "T 1", "B", "B"], []),
        ("l.txt", "name,type\nc2,T 1\nc1,B\nc3,B\nc4,B\n", ["B", "T 1", "B", "B"], ["'name', 'type', is a heading"]),
        ("l.txt", "c2\tT\nc1\tB\nc3\tB\nc4\tB\n", ["B", "T", "B", "B"], []),
        ("l.csv", "name,cluster\nc2,1\nc1,0\n", [0, 1, None, None], ["2 of 4 cells have none"]),
    ],
)
def test_labels_by_name(tmp_path, caplog, name, text, labels, said):
    with caplog.at_level("INFO", logger="mmdma_core"):
        assert read(tmp_path, name, text) == labels
    assert all(part in caplog.text for part in said), caplog.text


def test_names_of_labels_where_the_cells_have_none(tmp_path, caplog):
    with caplog.at_level("INFO", logger="mmdma_core"):
        assert read(tmp_path, "l.csv", "cell,type\nb,T\na,B\nd,B\nc,T\n", cells=None) == ["T", "B", "B", "T"]
    assert "the cells of the view have no names: labels are taken in the order of the file" in caplog.text


def test_rows_of_labels_are_not_names_of_cells(tmp_path):
    """R counts rows from 1, AnnData cells from 0."""
    numbered = ("0", "1", "2", "3")
    assert read(tmp_path, "l.csv", '"","x"\n"1","T"\n"2","B"\n"3","B"\n"4","A"\n', numbered) == ["T", "B", "B", "A"]
    assert read(tmp_path, "l.csv", "3,T\n1,B\n0,B\n2,A\n", numbered) == ["B", "B", "A", "T"]
    refused(lambda: read(tmp_path, "l.csv", "1,T\n2,B\n3,B\n", numbered), "3 labels for 4 cells")


def test_labels_of_numpy(tmp_path):
    np.save(tmp_path / "l.npy", [2.0, np.nan, 1.0, 1.0])
    assert read_labels(tmp_path / "l.npy", 4).tolist() == [2, None, 1, 1]
    np.save(tmp_path / "l.npy", ["T", "nan", "", "B"])
    assert read_labels(tmp_path / "l.npy", 4).tolist() == ["T", None, None, "B"]


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pd.Categorical(["T", None, "B", "T"]), ["T", None, "B", "T"]),
        (pd.array([3, None, 1, 1], dtype="Int64"), [3, None, 1, 1]),
        ([3.0, np.nan, 1.0, 1.5], [3.0, None, 1.0, 1.5]),
        (["T", "nan", "B", ""], ["T", None, "B", None]),
        (pd.array([True, None, False, True], dtype="boolean"), [True, None, False, True]),
    ],
)
def test_columns_of_obs_with_gaps(column, labels):
    import anndata

    data = anndata.AnnData(np.zeros((4, 2)), obs=pd.DataFrame({"kind": column}, index=list(CELLS)))
    given = View(data.X, CELLS, None, data, "x.h5ad")
    assert read_labels("kind", 4, given).tolist() == labels


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        (
            "l.csv",
            "id,n,type\nc1,3,T\nc2,4,B\n",
            ["must be one a line, or a name and a label, line 1 has 3 fields"],
        ),
        ("l.csv", "T\nB\nB,x\nT\n", ["line 3 has 2 fields"]),
        (
            "l.csv",
            "c1-1,T\nc2-1,B\nc3-1,B\nc4-1,T\n",
            ["for a cell of the view (4 would without a suffix)"],
        ),
        ("l.csv", "c1,T\nc2,B\nc2,B\nc4,T\n", ["a cell must have one label, 'c2' has 2"]),
        ("l.csv", "T\nB\nT\nB\nT\n", ["5 labels for 4 cells"]),  # the first is no heading
        ("l.csv", "4\n3\n2\n1\n0\n", ["5 labels for 4 cells"]),
        ("l.csv", "cluster\n3\n2\n1\n", ["'cluster', reads like a heading, 3 are left for 4 cells"]),
        ("l.txt", "NA\nNA\n\nnan\n", ["no cell has a label"]),
        ("l.txt", "1\n2\ninf\n1\n", ["labels must be finite, entry 3 is inf"]),
    ],
)
def test_labels_that_are_refused(tmp_path, name, text, parts):
    refused(lambda: read(tmp_path, name, text), str(tmp_path / name), *parts)


def test_labels_of_windows(tmp_path):
    assert read(tmp_path, "l.csv", "é\nB\nB\né\n", encoding="utf-16") == ["é", "B", "B", "é"]
    refused(
        lambda: read(tmp_path, "l.csv", "é\nB\nB\né\n", encoding="cp1252"), "byte 0xe9 is not UTF-8, save it as UTF-8"
    )


@pytest.mark.parametrize("most", [100, 4])
def test_cells_without_a_label_are_in_no_picture_of_labels(tmp_path, monkeypatch, most):
    drawn = []
    for name in ("_draw_dots", "_draw_density"):
        plain = getattr(pictures, name)
        monkeypatch.setattr(pictures, name, lambda *given, plain=plain: drawn.append(given[1]) or plain(*given))
    monkeypatch.setattr(pictures, "DENSITY_FROM", most)
    e = np.random.default_rng(0).normal(size=(4, 2))
    labels = np.array([1, None, 2, 1], dtype=object)
    pictures.draw_embedding(e, e, labels, np.array(["1", "2", "2", "1"]), tmp_path / "e.png")
    [(of_x, of_y)] = drawn
    assert (of_x[1].tolist(), of_y[1].tolist()) == (["1", "2", "1"], ["1", "2", "2", "1"])
    assert (len(of_x[0]), len(of_y[0])) == (3, 4)
