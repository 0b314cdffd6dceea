"""Two results folders compared: planted slow, lost and noisy cells, other machines, and what cannot be read."""

import json

import pytest
from test_records import record

from benchmarks.__main__ import main
from benchmarks.figures import comparison
from benchmarks.measuring import records
from benchmarks.reading import compare

MACHINE = {
    "gpu": {"name": "H100", "driver": "550", "sm_clock_mhz": 1980},
    "cpu": "EPYC",
    "cpu_threads": 2,
    "versions": {"torch": "2.4", "numba": None},
    "commit": "aaaa",
}
STEADY = [0.1, 0.101, 0.1005, 0.0995, 0.1, 0.1002]


def epochs(factor, base=STEADY):
    return [factor * seconds for seconds in base]


def made(variant="primal", n=1000, p=100, epoch_s=STEADY, status="ok", machine=MACHINE, device="cuda", **fields):
    one = record(variant, n, p, status, machine=machine, **fields)
    one.epoch_s, one.device = (list(epoch_s) if status == "ok" else []), device
    return one


@pytest.fixture
def folders(tmp_path):
    """Write two lists of records; returns both folders."""

    def write(a, b):
        for name, side in (("A", a), ("B", b)):
            for one in side:
                records.write(one, records.record_path(tmp_path / name, one.variant, one.p, one.n))
        return tmp_path / "A", tmp_path / "B"

    return write


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (STEADY, epochs(1.2), "slower"),
        (STEADY, epochs(0.8), "faster"),
        (STEADY, epochs(1.05), "same"),
        (STEADY, epochs(1.1), "noisy"),  # at the threshold itself nobody can say
        (STEADY, [0.08, 0.1, 0.12, 0.15, 0.2, 0.3], "noisy"),
        ([0.1, 0.1, 0.1, 0.1, 0.1, 5.0], [0.1] * 40 + [9.0], "noisy"),  # under 7 epochs an outlier counts
        ([0.1] * 39 + [5.0], [0.1] * 40 + [9.0], "same"),  # over 6 it does not
        ([0.1] * 40, [0.13] * 40 + [0.01], "slower"),
        ([0.1], [0.5], "noisy"),  # one epoch shows no spread
    ],
)
def test_the_rule(a, b, verdict):
    found, low, high = compare.judge(a, b, 1.1)
    assert found == verdict
    assert low <= high
    swapped = {"slower": "faster", "faster": "slower"}.get(verdict, verdict)
    assert compare.judge(b, a, 1.1)[0] == swapped


def test_a_planted_slow_cell_is_found_among_others(folders):
    a = [made(variant, n) for variant in ("primal", "dual") for n in (1000, 2000)]
    b = [made(variant, n, epoch_s=epochs(1.3 if (variant, n) == ("dual", 2000) else 1.0)) for variant, n in POINTS]
    found = compare.compare(*folders(a, b))
    slow = found.cells[found.cells["verdict"] == "slower"]
    assert slow[["variant", "n", "p"]].values.tolist() == [["dual", 2000, 100]]
    assert slow["ratio"].iloc[0] == pytest.approx(1.3)
    assert found.slower
    assert (found.warnings, found.left_out) == ([], [])
    text = compare.describe(found)
    assert "dual                     n = 2000     p = 100    1.001e-01 -> 1.301e-01  x 1.3" in text
    assert "Slower: the whole range of B / A is above 1.1" in text
    assert not compare.compare(*folders(a, b), threshold=1.5).slower


POINTS = [(variant, n) for variant in ("primal", "dual") for n in (1000, 2000)]


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [("ok", "oom", "lost"), ("ok", "error", "lost"), ("timeout", "ok", "gained"), ("oom", "oom", None)],
)
def test_a_cell_that_ended_on_one_side_only(folders, a, b, verdict):
    found = compare.compare(*folders([made(), made("dual", status=a)], [made(), made("dual", status=b)]))
    verdicts = dict(zip(found.cells["variant"], found.cells["verdict"], strict=True))
    assert verdicts == {"primal": "same"} | ({"dual": verdict} if verdict else {})
    assert found.slower == (verdict == "lost")
    assert found.left_out == ([] if verdict else ["1 cells that ended neither in A nor in B"])


def test_a_cell_skipped_for_a_smaller_n_is_lost_and_one_without_time_left_out(folders):
    a = [made(n=n) for n in (1000, 2000, 3000)]
    b = [made(), made(n=2000, status="skipped", implied_by=1500), made(n=3000, status="skipped")]
    found = compare.compare(*folders(a, b))
    assert found.cells["verdict"].tolist() == ["same", "lost"]
    assert found.left_out == ["A: 1 cell of primal, in B: skipped"]


def test_what_only_one_side_has_is_said(folders):
    a = [made(), made("dual"), made("gone"), made("gone", n=2000)]
    found = compare.compare(*folders(a, [made(), made("dual", status="missing_dependency"), made("new")]))
    assert found.left_out == [
        "A: 1 cell of dual, in B: missing_dependency",
        "A: 2 cells of gone, in B: not there",
        "B: 1 cell of new, in A: not there",
    ]


def test_a_variant_that_no_longer_exists_is_compared_all_the_same(folders, tmp_path):
    found = compare.compare(*folders([made("gone")], [made("gone", epoch_s=epochs(2))]))
    assert found.cells["verdict"].tolist() == ["slower"]
    comparison.write(found, tmp_path / "gone.svg")
    assert "gone" in (tmp_path / "gone.svg").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gpu": MACHINE["gpu"] | {"name": "A100"}}, "gpu.name differs: H100 in A, A100 in B"),
        ({"gpu": MACHINE["gpu"] | {"driver": "535"}}, "gpu.driver differs: 550 in A, 535 in B"),
        (
            {"gpu": MACHINE["gpu"] | {"sm_clock_mhz": 1500}},
            "gpu.sm_clock_mhz differs: 1980 MHz in A, 1500 MHz in B (medians)",
        ),
        ({"gpu": MACHINE["gpu"] | {"sm_clock_mhz": 1965}}, None),
        ({"versions": {"torch": "2.5", "numba": None}}, "versions.torch differs: 2.4 in A, 2.5 in B"),
        ({"commit": "bbbb"}, "commit differs: aaaa in A, bbbb in B"),
        ({"cpu_threads": 16}, "cpu_threads differs: 2 in A, 16 in B"),
    ],
)
def test_another_machine_is_a_warning(folders, change, sentence):
    found = compare.compare(*folders([made()], [made(machine=MACHINE | change)]))
    assert found.warnings == ([sentence] if sentence else [])


def test_other_settings_are_a_warning(folders):
    other = made()
    other.d, other.key = 5, "another"
    found = compare.compare(*folders([made()], [other]))
    assert found.warnings == [
        "d differs: 10 in A, 5 in B",
        "1 of 1 cells answer another question: other settings, or other code of the variant",
    ]
    on_cpu = made(machine=MACHINE | {"gpu": None}, device="cpu")
    said = compare.compare(*folders([made()], [on_cpu])).warnings
    assert "device differs: cuda in A, cpu in B" in said
    assert "gpu.name differs: H100 in A, None in B" in said


def test_two_machines_in_one_folder(folders):
    stranger = made("dual", machine=MACHINE | {"gpu": {"name": "T4"}})
    found = compare.compare(*folders([made(), made(n=2000)], [made(), made(n=2000), stranger]))
    assert found.left_out == ["B: 1 records of T4, another machine than H100, which has the most"]
    assert len(found.cells) == 2


def test_records_that_cannot_be_read_are_left_out_and_said(folders):
    a, b = folders([made(), made(n=2000)], [made(), made(n=2000)])
    path = records.record_path(b, "primal", 100, 2000)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    left_out = compare.compare(a, b).left_out
    assert "schema version 99, this program reads 1" in left_out[0]
    assert left_out[1] == "A: 1 cell of primal, in B: not there"


def test_the_command_and_its_status(folders, tmp_path, capsys):
    a, b = folders([made()], [made(epoch_s=epochs(1.3))])
    picture = tmp_path / "compared.png"
    assert main(["compare", str(a), str(b), "--out", str(picture)]) == 1
    assert picture.stat().st_size > 5000
    assert main(["compare", str(b), str(a)]) == 0
    assert main(["compare", str(a), str(b), "--threshold", "1.5"]) == 0
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    strangers = folders([made("dual")], [])[0]
    for arguments, words in (
        ((a, tmp_path / "empty"), "records holds no readable record"),
        ((a, tmp_path / "nowhere"), "nowhere/records holds no readable record"),
        ((a, b, "--threshold", "1"), "--threshold must be above 1, got 1"),
        ((a, b, "--threshold", "nan"), "--threshold must be above 1, got nan"),
        ((a, b, "--out", tmp_path / "picture.gif"), "--out must end in .png, .svg, .pdf"),
        ((a, b, "--out", tmp_path / "no" / "such.png"), "No such file or directory"),
    ):
        assert main(["compare", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert strangers.exists()


def test_no_common_cell_is_bad_input(folders):
    with pytest.raises(ValueError, match="have no cell that ended in one of them and was tried in the other"):
        compare.compare(*folders([made()], [made("dual")]))


def test_the_picture_colours_each_cell_by_its_verdict(folders):
    a = [made(n=n) for n in (1000, 2000)] + [made("dual")]
    b = [made(n=1000), made(n=2000, epoch_s=epochs(1.3)), made("dual", status="oom")]
    figure = comparison.draw(compare.compare(*folders(a, b)))
    dual, primal = figure.axes
    assert [text.get_text() for text in primal.texts] == ["1.00", "1.30"]
    assert [text.get_text() for text in dual.texts] == [""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "slower",
        "lost (ended in A, not in B)",
        "same",
    ]
