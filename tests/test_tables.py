"""Tables of text as people have them: large ones, names that are numbers, comments, quotes, encodings."""

import gzip

import numpy as np
import pytest
from refusals import refused

from mmdma_core.files import tables
from mmdma_core.files.io import read_view
from mmdma_core.matching.command_line import main

GENES_BY_CELLS = np.array([[5.0, 0.0, 1.0], [0.0, 2.0, 7.0]])


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.slow
def test_a_large_table(tmp_path):
    """Counts of 4,000 genes in 7,000 cells, more than 100 MB of text."""
    genes, cells = 4_000, 7_000
    codes = np.random.default_rng(0).integers(0, 100, (genes, cells), dtype=np.uint8)
    fields = np.array([f"{value:.3f}" for value in np.arange(100) / 8])
    with (tmp_path / "x.csv").open("w") as file:
        file.write("".join(f",cell{i}" for i in range(cells)) + "\n")
        file.writelines(f"gene{i}," + ",".join(fields[row]) + "\n" for i, row in enumerate(codes))
    view = read_view(tmp_path / "x.csv", transpose=True)
    assert np.array_equal(view.matrix.T, codes / 8)
    assert view.cells == tuple(f"cell{i}" for i in range(cells))
    assert view.features == tuple(f"gene{i}" for i in range(genes))


@pytest.mark.parametrize("last", ["1e5", "x"])
def test_blocks_of_lines(tmp_path, monkeypatch, last):
    """Rows are counted, and names kept, from block to block."""
    monkeypatch.setattr(tables, "_BLOCK", 9)
    lines = [f"c{i},{i}.5,0" for i in range(19)]
    write(tmp_path / "x.csv", "\n".join(["cell,g1,g2", *lines, f"c19,2,{last}"]))
    if last == "x":
        refused(lambda: read_view(tmp_path / "x.csv"), "row 'c19', column 'g2' holds 'x'")
        return
    view = read_view(tmp_path / "x.csv")
    assert view.cells == tuple(f"c{i}" for i in range(20))
    np.testing.assert_array_equal(view.matrix, [*([i + 0.5, 0] for i in range(19)), [2, 1e5]])


@pytest.mark.parametrize(
    ("text", "genes", "cells"),
    [
        ("gene,1,2,3\nSOX2,5,0,1\nNANOG,0,2,7\n", ("SOX2", "NANOG"), "123"),
        ("gene_id\t1\t2\t3\n6657\t5\t0\t1\n79923\t0\t2\t7\n", ("6657", "79923"), "123"),
        ("Gene symbol;30;10;20\nSOX2;5;0;1\nNANOG;0;2;7\n", ("SOX2", "NANOG"), ("30", "10", "20")),
        ("Unnamed: 0,0,1,2\n0,5,0,1\n1,0,2,7\n", "01", "012"),
        ('"g","1","2","3"\n"SOX2",5,0,1\n"NANOG",0,2,7\n', ("SOX2", "NANOG"), "123"),  # quotes tell
        ('"1" "2" "3"\n"6657" 5 0 1\n"79923" 0 2 7\n', ("6657", "79923"), "123"),  # R
        ("1 2 3\nSOX2 5 0 1\nNANOG 0 2 7\n", ("SOX2", "NANOG"), "123"),
        (",7157,672,10\n0,5,0,1\n1,0,2,7\n", "01", ("7157", "672", "10")),
        ("cell_id,A,B,C\n1,5,0,1\n2,0,2,7\n", "12", "ABC"),
        ('"c","A","B","C"\n"7",5,0,1\n"6",0,2,7\n', "76", "ABC"),
        ("g1,5,0,1\ng2,0,2,7\n", ("g1", "g2"), None),
        ("g1,5,3,1\ng2,0,2,7\n", ("g1", "g2"), None),  # alike: both are cells
        ("AAACCTGA-1,5,3,1\nTTTGGTCA-1,0,2,7\n", ("AAACCTGA-1", "TTTGGTCA-1"), None),
        ("area,A,B,C\n.5,5,0,1\n2,0,2,7\n", None, ("area", "A", "B", "C")),  # a feature
    ],
)
def test_names_that_are_numbers(tmp_path, text, genes, cells):
    view = read_view(write(tmp_path / "x.csv", text))
    assert view.cells == (genes if genes is None else tuple(genes))
    assert view.features == (cells if cells is None else tuple(cells))
    assert view.matrix.shape == (2, 4 if genes is None else 3)
    if "5,3,1" not in text:
        np.testing.assert_array_equal(view.matrix[:, -3:], GENES_BY_CELLS)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("clone,1,2,3\nSOX2,5,0,1\n", ["first row, 'clone', '1', '2', ..., may be names or numbers", "give --header,"]),
        ("clone,1,2,3\n17,5,0,1\n", ["first row, 'clone'", "for names give --header, else --no-header"]),
        ("time,0.5,0.5,2\nA,5,0,1\n", ["first row, 'time', '0.5', '0.5'", "--header"]),
        ("sample,1,1,2\nA,5,0,1\n", ["first row, 'sample', '1', '1'", "--header"]),
        (",71,67\n12,5,1\n17,0,2\n", ["first row, '', '71', '67'", "--header"]),
        ("cell_id,A,B\n1.5,5,0\n2,0,2\n", ["first column, 'cell_id', '1.5', '2'", "give --index, else --no-index"]),
        ("X,A\n1,5\n2,6\n3,2\n4,1\n5,9\n", ["first column, 'X', '1', '2', ..., may be names or numbers"]),
        ("0,1,2,3,4\n5,0,0,1,2\n3,3,0,1,2\n", ["first row, '0', '1', '2', ..., may be names or numbers", "--header"]),
        ("1,.5\n2,.5\n3,.1\n4,.7\n5,.8\n", ["first column, '1', '2', '3', ..., may be names or numbers", "--index"]),
        ("gene,1,c2,3\nSOX2,5,0,1\n", ["row 'gene', column 2 holds 'c2': if this row holds names, give --header"]),
        ("id,name,c1\ng1,SOX2,1\ng2,NANOG,3\n", ["row 'g1', column 'name' holds 'SOX2': names stand in the first row"]),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(tmp_path, text, parts):
    path = write(tmp_path / "x.csv", text)
    refused(lambda: read_view(path), str(path), *parts)


@pytest.mark.parametrize(
    ("text", "more", "cells", "features"),
    [
        ("clone,1,2,3\nSOX2,5,0,1\nNANOG,0,2,7\n", {"header": True}, ("SOX2", "NANOG"), tuple("123")),
        ("clone,5,0,1\nSOX2,0,2,7\n", {"header": False}, ("clone", "SOX2"), None),
        ("clone,1,2,3\n17,5,0,1\n18,0,2,7\n", {"header": True, "index": True}, ("17", "18"), tuple("123")),
        (",71,67,9\n12,5,0,1\n17,0,2,7\n", {"header": True}, ("12", "17"), ("71", "67", "9")),
        ("cell_id,A,B,C\n1.5,5,0,1\n2,0,2,7\n", {"index": True}, ("1.5", "2"), tuple("ABC")),
        ("0,1,2\n5,0,1\n0,2,7\n", {"header": True}, None, tuple("012")),
        ("5,0,1\n0,2,7\n", {"header": False, "index": False}, None, None),
        ("1 2 3\n6657 5 0 1\n79923 0 2 7\n", {"header": True}, ("6657", "79923"), tuple("123")),  # R, without quotes
        ("# 7 8 9\n5 0 1\n0 2 7\n", {"header": False}, None, None),
        ("# a b c\n5 0 1\n0 2 7\n", {"header": False}, None, None),
        ("# a b c\n5 0 1\n0 2 7\n", {"header": True}, None, tuple("abc")),
        ("1,5,0,1\n2,0,2,7\n", {"index": True}, ("1", "2"), None),
    ],
)
def test_the_options_say_what_are_names(tmp_path, text, more, cells, features):
    view = read_view(write(tmp_path / "x.csv", text), **more)
    np.testing.assert_array_equal(view.matrix, GENES_BY_CELLS)
    assert (view.cells, view.features) == (cells, features)


def test_the_options_are_for_tables_of_text(tmp_path):
    np.save(tmp_path / "x.npy", GENES_BY_CELLS)
    for name in ("header", "index"):
        option = {name: False}
        refused(lambda option=option: read_view(tmp_path / "x.npy", **option), f"{name} is for tables of text, this is")


def test_commands_take_the_options_for_one_view_or_both(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, corner in (("x", "clone"), ("y", "week")):
        rows = [f"{k},{k % 7},{k % 3}.5,{(k * k) % 5}" for k in range(20)]
        write(tmp_path / f"{name}.csv", "\n".join([f"{corner},1,2,3", *rows]))
    evaluate = ["evaluate", "--x", "x.csv", "--y", "y.csv", "--same-cells"]
    assert main(evaluate) == 2
    assert "x.csv: the first row, 'clone', '1', '2', ..., may be names or numbers" in capsys.readouterr().err
    assert main([*evaluate, "--x-header", "--index"]) == 2
    assert "y.csv: the first row, 'week'" in capsys.readouterr().err
    for more in (["--header", "--index"], ["--header", "--x-index", "--y-index"]):
        assert main([*evaluate, *more]) == 0
    assert main([*evaluate, "--header", "--no-index", "--x-index"]) == 2  # 3 features and 4
    assert main([*evaluate, "--header", "--index", "--no-y-header"]) == 2  # a cell more
    capsys.readouterr()


@pytest.mark.parametrize("scale", [1, 1e-16])
def test_all_digits_are_kept(tmp_path, scale):
    values = scale * np.random.default_rng(0).normal(size=(200, 2))
    text = "".join(
        ",".join(f"{value:.20f}" if scale == 1 else f"{value:.40f}" for value in row) + "\n" for row in values
    )
    right = [[float(field) for field in line.split(",")] for line in text.splitlines()]
    np.testing.assert_array_equal(read_view(write(tmp_path / "x.csv", text)).matrix, right)


@pytest.mark.parametrize(
    "text",
    [
        "# by X\n# in 2020\ncell,g1,g2,g3\nc1,5,0,1\nc2,0,2,7\n",
        "sep=;\ncell;g1;g2;g3\nc1;5;0;1\nc2;0;2;7\n",
        "#cell\tg1\tg2\tg3\r\nc1\t5\t0\t1\r\nc2\t0\t2\t7\r\n",
        "# g1, g2, g3\nc1,5,0,1\nc2,0,2,7\n",
        "cell,g1,g2,g3,\nc1,5,0,1,\nc2,0,2,7,\n",
        "\tg1\tg2\tg3\t\nc1\t5\t0\t1\t\n\nc2\t0\t2\t7\t\n",
        'cell, "g1", g2, g3\nc1, 5, "0", 1\nc2, 0, 2, 7\n',
        '"cell";"g1";"g2";"g3"\r"c1";5;0;1\r"c2";"0";"2";"7"\r',
        '"g1" "g2" "g3"\n"c1" 5 0 1\n"c2"   0 2 7',
    ],
)
def test_comments_quotes_and_ends(tmp_path, text):
    view = read_view(write(tmp_path / "x.txt", text))
    assert (view.cells, view.features) == (("c1", "c2"), ("g1", "g2", "g3"))
    np.testing.assert_array_equal(view.matrix, GENES_BY_CELLS)


def test_names_with_the_characters_of_comments_and_separators(tmp_path):
    view = read_view(write(tmp_path / "x.csv", '"T;CD4",g\n1,.5\n3,4\n'))
    assert view.features == ("T;CD4", "g")
    view = read_view(write(tmp_path / "x.csv", "PTPRC;CD45,g\n1,.5\n3,4\n"))
    assert view.features == ("PTPRC;CD45", "g")
    view = read_view(write(tmp_path / "x.csv", "#1,.5\n#2,.5\nS1#A,3\n"))
    assert view.cells == ("#1", "#2", "S1#A")
    view = read_view(write(tmp_path / "x.csv", '"a ""b""",.5\n"c, d",.5\n'))
    assert view.cells == ('a "b"', "c, d")
    view = read_view(write(tmp_path / "x.csv", "E1,.5\nE2,.5\n1-2,3\n1.2.3,4\n"))
    assert view.cells == ("E1", "E2", "1-2", "1.2.3")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_encodings_with_a_mark(tmp_path, encoding, suffix):
    data = "cell,gé1,g2,g3\nc1,5,0,1\nc2,0,2,7\n".encode(encoding)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    view = read_view(path)
    assert view.features == ("gé1", "g2", "g3")
    np.testing.assert_array_equal(view.matrix, GENES_BY_CELLS)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("cell,gé1\nc1,1\nc2,3\n".encode("cp1252"), ["byte 0xe9 is not UTF-8, save it as UTF-8"]),
        ("c1,1\nc2,3\ncé3,1\n".encode("cp1252"), ["byte 0xe9 is not UTF-8, save it as UTF-8"]),
        ("1,2\n3,4\n".encode("utf-16-le"), ["NUL", "UTF-16 needs its mark"]),
        (b"cell;g1\nc1;2,5\nc2;3\n", ["row 'c1', column 'g1' holds '2,5': write numbers like -1234.5, with a point"]),
        (b"1,5\t2,5\n3,0\t4,1\n", ["row 1, column 1 holds '1,5': write numbers like"]),
        (b'"1,5","2"\n"3,1","4"\n', ["row 1, column 1 holds '1,5': write numbers like"]),
        (b"1.234,5;2\n3;4\n", ["row 1, column 1 holds '1.234,5': write numbers like"]),
        (b"1 234;2\n3;4\n", ["row 1, column 1 holds '1 234': write numbers like"]),
        ("\u22121,2\n3,4\n".encode(), ["row 1, column 1 holds '\u22121': write numbers like"]),
        (b"5%,2\n3,4\n", ["row 1, column 1 holds '5%': write numbers like"]),
        (b"g1,g2\n.5,2\n-,3\n", ["row 2, column 'g1' holds '-': fill it"]),
        (b"cell,g1\nc1,1\n,2\n", ["in line 3 the name is empty: fill it"]),
        (b",g1\n,1\n,2\n", ["in line 2 the name is empty: fill it"]),
        (b"cell,g1,g2\nc1,1,2\nc2,NA,3\n", ["row 'c2', column 'g1' holds 'NA': fill it, or leave out its row or its"]),
        (b"g1,g2\n.5,2\n3,\n", ["row 2, column 'g2' holds '': fill it"]),
        (b"1,2\n3,4\n# end\n", ["line 3 has fields: 1, those before it: 2: comments may stand above the table alone"]),
        (b"g1,g2,\n1,2,\n3,4\n" + b"5,6,\n" * 9, ["row 'g1', column 1 holds 'g2'"]),
        (b"g1,g2,\n" + b"5,6,\n" * 12 + b"3,\n", ["line 14 has fields: 1, those before it: 2"]),
        (b"g1,g2,\n" + b"5,6,\n" * 12 + b"3,4,7\n", ["line 14 has fields: 3, those before it: 2"]),
        (b'c1,1\n"c2,2\nc3",3\n', ["line 2 ends within quotation marks: close them on that line"]),
        (b"c1,.5\n" * 12 + b'"c2,2\nc3",3\n', ["line 13 ends within quotation marks"]),
        (b"c1,.5,1\nc2,1,1\nc1,3,1\n", ["cell names must differ, 'c1' occurs 2 times"]),
    ],
)
def test_tables_that_are_refused(tmp_path, content, parts):
    (tmp_path / "x.csv").write_bytes(content)
    refused(lambda: read_view(tmp_path / "x.csv"), str(tmp_path / "x.csv"), *parts)


def test_a_packed_table_that_is_damaged(tmp_path):
    packed = gzip.compress(b"c1,1.5\nc2,2\n" * 1000)
    for content in (packed[:-20], packed[:30] + b"\0\0\0" + packed[33:]):
        (tmp_path / "x.csv.gz").write_bytes(content)
        refused(lambda: read_view(tmp_path / "x.csv.gz"), "x.csv.gz cannot be read as a table of text: ")
