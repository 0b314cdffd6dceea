"""Vectors of a person's own: matches, by number or by name, and the files they are in."""

import json

import numpy as np
import pytest
from refusals import refused

from mmdma_core.files.io import View, align_by_name, compare_names, read_match, read_vector
from mmdma_core.files.names import least_common
from mmdma_core.matching.command_line import main


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("v.txt", "3\n-1\n0\n", [3, -1, 0]),
        ("v.txt", "1.000e+00\n2.0e+00\n", [1, 2]),  # numpy.savetxt
        ("v.csv", "1.5\r\n2\r\n", [1.5, 2.0]),
        ("v.txt", "T cell, CD4\n1\n", ["T cell, CD4", "1"]),
        ("v.csv", '"T cell, CD4"\nB\n', ["T cell, CD4", "B"]),
        ("v.TSV", "\ufeffB\nT\n", ["B", "T"]),
    ],
)
def test_vectors_of_text(tmp_path, name, text, values):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    read = read_vector(tmp_path / name, "labels")
    assert read.tolist() == values
    assert read.dtype == np.array(values).dtype


@pytest.mark.parametrize("array", [np.array([3, -1]), np.array([[3.0], [-1.0]]), np.array([3, -1], dtype=">i2")])
def test_vectors_of_numpy(tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    assert read_vector(tmp_path / "v.npy", "match vector").tolist() == [3, -1]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("v.txt", b"1\n\n2\n", ["labels must have one value a line, line 2 has none"]),
        ("v.csv", b"1\n2,3\n", ["labels must have one value a line, line 2 has 2"]),
        ("v.txt", b"1\nnan\n", ["labels must be finite, entry 2 is nan"]),
        ("v.txt", b"\xff\x00\n", ["cannot be read as text"]),
        ("v.json", b"[]", ["labels must be a .npy, .txt, .csv or .tsv file"]),
        ("v.npy", b"1\n2\n", ["cannot be read as a NumPy array"]),
        ("v.npy", np.ones((2, 2)), ["labels must be a vector", "(2, 2)"]),
        ("v.npy", np.ones(2, dtype=complex), ["labels must be a vector", "complex128"]),
        ("w.txt", None, ["no such file"]),
    ],
)
def test_vectors_that_are_refused(tmp_path, name, content, parts):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    refused(lambda: read_vector(tmp_path / name, "labels"), str(tmp_path / name), *parts)


def test_a_match(tmp_path):
    (tmp_path / "m.txt").write_text("2\n0\n-1\n-1\n")
    match = read_match(tmp_path / "m.txt", 4, 3)
    assert match.tolist() == [2, 0, -1, -1]
    assert match.dtype == np.int64


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (np.arange(5), ["match vector has 5 entries, x has 4 cells: is x transposed?"]),
        (np.array([0, 1, 2, 2]), ["one to one, row 2 of y is the match of 2 cells"]),
        (np.array([1, -1, 1, -1]), ["one to one, row 1 of y is the match of 2 cells"]),
        (np.array([1, 2, 3, 4]), ["rows of y counted from 0, 0 to 3; entry 4 is 4"]),
        (np.array([0, 1, -2, 3]), ["entry 3 is -2"]),
        (np.array([0, 1, 2, 2**64 - 1], dtype=np.uint64), ["entry 4 is 18446744073709551615"]),
        (np.array([0, 1, 2, 0.5]), ["must hold integers", "float64"]),
        (np.array(["a", "b", "c", "d"]), ["must hold integers", "'a'"]),
        (np.array([True, False, True, False]), ["must hold integers", "bool"]),
    ],
)
def test_matches_that_are_refused(tmp_path, values, parts):
    np.save(tmp_path / "m.npy", values)
    refused(lambda: read_match(tmp_path / "m.npy", 4, 4), str(tmp_path / "m.npy"), *parts)


def test_a_match_below_a_heading(tmp_path):
    (tmp_path / "m.csv").write_text("row_of_y\n1\n0\n2\n")
    assert read_match(tmp_path / "m.csv", 3, 3).tolist() == [1, 0, 2]
    (tmp_path / "m.csv").write_text("3\n1\n0\n2\n")
    refused(lambda: read_match(tmp_path / "m.csv", 3, 4), "match vector has 4 entries, x has 3 cells")


def named(cells):
    return View(np.zeros((4, 2)), cells, None, None, "x.npy")


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (("a", "b", "c"), ("c", "x", "a", "b"), [2, 3, 0]),
        (("a", "b", "c"), ("c", "d"), [-1, -1, 0]),
        (("a", "b"), ("c", "d"), None),
        (("a", "a"), ("a", "d"), None),
        (("a", "b"), ("a", "a"), None),
        (("0", "1", "2"), ("0", "1"), None),  # numbers that AnnData and pandas give
        (("2", "0", "1"), ("7", "3"), None),
        (("1", "2", "3"), ("1", "2", "3"), None),  # R
        (("a", "1"), ("0", "1"), None),
        (("0-0", "1-0", "0-1"), ("0-0", "1-0"), None),  # AnnData after a concatenation
        (("7157", "672"), ("672", "7157"), [1, 0]),
        (("01", "02"), ("02", "01"), [1, 0]),
        (None, ("a", "b"), None),
        (("a", "b"), None, None),
    ],
)
def test_align_by_name(x, y, match):
    found = align_by_name(named(x), named(y))
    assert found is match if match is None else found.tolist() == match


CODES = ("AACGTTAC", "CCGATAGT", "GGTTACAC", "TACGATTG")


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ("{}-1", "{}-1", "4 of 4 cells of x are in y by name"),
        ("{}-1", "{}_2", "0 of 4 cells * 4 would without a suffix, as 'AACGTTAC-1' in x and 'AACGTTAC_2' in y; only"),
        ("{}-1", "{}", "0 of 4 cells * 4 would without a suffix, as 'AACGTTAC-1' in x and 'AACGTTAC' in y; only"),
        ("S1_{}-1", "{}-1", "0 of 4 cells * 4 would without a prefix, as 'S1_AACGTTAC-1' in x and 'AACGTTAC-1' in y"),
        ("S1#{}-1", "S2#{}-1", "0 of 4 cells * 4 would without a prefix, as 'S1#AACGTTAC-1' in x and 'S2#AACGTTAC-1'"),
        ("S1#{}-1", "S1_{}-1", "0 of 4 cells * 4 would but for case and separators, as 'S1#AACGTTAC-1' in x and 'S1_"),
        ("rna_run_1:{}", "{}-1-0", "0 of 4 cells * 4 would by their longest part alone, as 'rna_run_1:AACGTTAC' in x"),
        ("{}", "cell{:.2}", "0 of 4 cells of x are in y by name: 'AACGTTAC' in x, 'cellAA' in y; give --match, or"),
    ],
)
def test_how_many_names_agree(x, y, said):
    found = compare_names(*(named(tuple(map(form.format, CODES))) for form in (x, y)))
    begin, _, end = said.partition(" * ")
    assert found.startswith(begin)
    assert end in found
    assert "\n" not in found


def test_how_many_names_agree_in_part():
    x, y = CODES, (CODES[1], CODES[0] + "-1", "other")
    assert compare_names(named(x), named(y)).startswith("1 of 4 cells of x are in y by name, 2 would without a suffix")
    assert compare_names(named(CODES), named(CODES[1:])) == "3 of 4 cells of x are in y by name"
    assert compare_names(named(CODES), named((*CODES[1:], "other"))) == "3 of 4 cells of x are in y by name"


def test_names_that_are_only_numbers():
    found = compare_names(named(CODES), named(("0", "1", "2")))
    assert found.startswith(
        "none is made of names, the cells of y are only numbered ('0', '1', ...): --same-cells says"
    )
    assert compare_names(named(None), named(CODES)) is None


@pytest.mark.parametrize(
    ("n_x", "n_y", "least"),
    [
        (1, 1, 1),
        (300, 5, 1),
        (1600, 1600, 160),
        (1600, 20_000, 160),
        (20_000, 20_000, 2000),
        (73_728, 73_728, 14_746),  # twice what chance gives
        (10**6, 10**6, 500_000),
        (500, 10**6, 250),
    ],
)
def test_so_many_names_must_be_common(n_x, n_y, least):
    assert least_common(n_x, n_y) == least


def test_barcodes_that_collide_are_no_match():
    """Two random draws from 10x Genomics' list have fewer in common than it takes, joint cells filtered apart more."""
    rng = np.random.default_rng(0)
    for n in (1600, 20_000):
        drawn = [rng.choice(737_280, n, replace=False) for _ in "xy"]
        joint = [rng.choice(drawn[0], int(0.8 * n), replace=False) for _ in "xy"]
        for cells, known in ((drawn, False), (joint, True)):
            x, y = (named(tuple(f"{code:020b}".replace("0", "A").replace("1", "C") for code in of)) for of in cells)
            assert (align_by_name(x, y) is not None) is known
            assert ("chance" in compare_names(x, y)) is not known
            both = np.intersect1d(*cells).size
            assert np.count_nonzero(align_by_name(x, y, insist=True) >= 0) == both


def test_names_are_taken_where_they_are_insisted_on(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name, other in (("x", "CELL"), ("y", "OTHER")):
        rows = [f"{'CELL' if k < 2 else other}{k}-1,{k % 7},{k % 3}.5" for k in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["cell,a,b", *rows]))
    fit = "fit --x x.csv --y y.csv --variant primal --n-components 1 --n-epochs 1 --n-starts 1 --device cpu --quiet"
    with caplog.at_level("INFO"):
        assert main([*fit.split(), "--out", "chance"]) == 0
    reason = json.loads((tmp_path / "chance/metrics.json").read_text())["left_out"]["foscttm"]
    assert reason.startswith("2 of 40 cells of x are in y by name, which chance may explain")
    assert "(it takes 4); --match names takes them" in reason
    assert f"match: {reason}" in caplog.messages
    assert main([*fit.split(), "--match", "names", "--out", "names"]) == 0
    assert "foscttm" in json.loads((tmp_path / "names/metrics.json").read_text())["values"]
    np.save("x.npy", np.eye(40))
    assert main([*fit.replace("x.csv", "x.npy").split(), "--match", "names", "--out", "none"]) == 2
