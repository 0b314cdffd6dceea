"""Two results folders compared: planted slow, lost and noisy cells, other machines, and what cannot be read."""

import dataclasses
import json

import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_records import record

from benchmarks.__main__ import main
from benchmarks.analysis import compare
from benchmarks.figures import comparison
from benchmarks.figures.style import PAGE
from benchmarks.measuring import records

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
    if status == "ok":
        one.set_runtime()
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
def test_the_rule(folders, a, b, verdict):
    a, b = folders([made(epoch_s=a)], [made(epoch_s=b)])
    (found,) = compare.compare(a, b, 1.1).found.itertuples()
    assert found.verdict == verdict
    assert found.low <= found.high
    swapped = {"slower": "faster", "faster": "slower"}.get(verdict, verdict)
    assert compare.compare(b, a, 1.1).found["verdict"].tolist() == [swapped]


def test_a_planted_slow_cell_is_found_among_others(folders):
    a = [made(variant, n) for variant in ("primal", "dual") for n in (1000, 2000)]
    b = [made(variant, n, epoch_s=epochs(1.3 if (variant, n) == ("dual", 2000) else 1.0)) for variant, n in POINTS]
    found = compare.compare(*folders(a, b))
    slow = found.found[found.found["verdict"] == "slower"]
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
    verdicts = dict(zip(found.found["variant"], found.found["verdict"], strict=True))
    assert verdicts == {"primal": "same"} | ({"dual": verdict} if verdict else {})
    assert found.slower == (verdict == "lost")
    assert found.left_out == ([] if verdict else ["1 measurement that ended neither in A nor in B"])


def test_a_cell_skipped_for_a_smaller_n_is_lost_and_one_without_time_left_out(folders):
    a = [made(n=n) for n in (1000, 2000, 3000)]
    b = [made(), made(n=2000, status="skipped", implied_by=1500), made(n=3000, status="skipped")]
    found = compare.compare(*folders(a, b))
    assert found.found["verdict"].tolist() == ["same", "lost"]
    assert found.left_out == ["A: 1 measurement of primal, in B: skipped"]


def test_what_only_one_side_has_is_said(folders):
    a = [made(), made("dual"), made("gone"), made("gone", n=2000)]
    found = compare.compare(*folders(a, [made(), made("dual", status="missing_dependency"), made("new")]))
    assert found.left_out == [
        "A: 1 measurement of dual, in B: missing_dependency",
        "A: 2 measurements of gone, in B: not there",
        "B: 1 measurement of new, in A: not there",
    ]


def test_a_variant_that_no_longer_exists_is_compared_all_the_same(folders, tmp_path):
    found = compare.compare(*folders([made("gone")], [made("gone", epoch_s=epochs(2))]))
    assert found.found["verdict"].tolist() == ["slower"]
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


LOSS = {"epoch": 3, "total": 1.001, "mmd": 1.0, "pen_x": 2.0, "pen_y": 2.0, "dis_x": 3.0, "dis_y": 3.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d": 5}, "d is 10 in A, 5 in B"),
        ({"seed": 5}, "seed is 4 in A, 5 in B"),
        ({"epochs": 9}, "epochs is 500 in A, 9 in B"),
        ({"data_mode": "fast"}, "data_mode is exact in A, fast in B"),
        ({"devices": 2}, "devices is 1 in A, 2 in B"),
        ({"mmd": 0.9, "total": 0.901}, "their losses after the same epochs differ"),  # sigma, the shape of the data
        ({"total": 1.002}, "their losses"),  # lambda1, lambda2
        ({"pen_y": 2.2}, "their losses"),  # the learning rate
    ],
)
def test_a_cell_that_answers_another_question_is_never_slower(folders, change, words):
    def at(n, seconds, changed):
        one = made(n=n, epoch_s=epochs(seconds), data_mode="exact", losses={"early": LOSS | changed})
        for name, value in changed.items():
            if name not in LOSS:
                setattr(one, name, value)
        one.key = f"{changed}"
        return one

    a, b = [at(1000, 1, {}), at(2000, 1, {})], [at(1000, 9, change), at(2000, 1, {})]
    b[1].key = "other code"
    with pytest.raises(ValueError, match=r"was tried in the other; 1 measurement of primal, which answers another"):
        compare.compare(*folders(a[:1], b[:1]))
    found = compare.compare(*folders(a, b))
    assert found.found[["n", "verdict"]].values.tolist() == [[2000, "same"]]
    assert not found.slower
    assert set(found.points["n"]) == {2000}
    (sentence,) = found.left_out
    assert sentence.startswith(f"1 measurement of primal, which answers another question: {words}")


def test_the_published_runtimes_point_to_what_compares_with_them(folders):
    a, _ = folders([made()], [made()])
    with pytest.raises(ValueError, match=r"but the published runtimes: figures/against_paper and the report"):
        compare.compare(a, ROOT / "results" / "published-v100")


def test_the_first_line_says_what_is_compared_and_lists_stand_at_the_end(folders):
    a = [made(), made(n=2000), made(n=3000), made("dual")]
    b = [made(), made(n=2000, epoch_s=epochs(2)), made(n=3000, status="oom")]
    said = compare.describe(compare.compare(*folders(a, b))).splitlines()
    assert said[0] == "B against A: seconds per epoch of 1 variant at 3 points that both tried, on H100"
    heads = ["slower:", "lost (ended in A, not in B):", "left out: A: 1 measurement of dual, in B: not there"]
    places = [said.index(head) for head in heads]
    assert places == sorted(places)
    assert min(places) > next(i for i, line in enumerate(said) if line.startswith("Slower: the whole range"))


def test_other_code_and_another_device_are_a_warning(folders):
    other = made()
    other.key = "another"
    found = compare.compare(*folders([made()], [other]))
    assert found.warnings == ["1 of 1 were measured with other code of the variant, or other packages for it"]
    on_cpu = made(machine=MACHINE | {"gpu": None}, device="cpu")
    said = compare.compare(*folders([made()], [on_cpu])).warnings
    assert "device differs: cuda in A, cpu in B" in said
    assert "gpu.name differs: H100 in A, None in B" in said


def test_two_machines_in_one_folder(folders):
    stranger = made("dual", machine=MACHINE | {"gpu": {"name": "T4"}})
    found = compare.compare(*folders([made(), made(n=2000)], [made(), made(n=2000), stranger]))
    assert found.left_out == ["B: 1 measurement of T4: the folder holds those of several machines, H100 has the most"]
    assert len(found.found) == 2


def test_records_that_cannot_be_read_are_left_out_and_said(folders):
    a, b = folders([made(), made(n=2000)], [made(), made(n=2000)])
    path = records.record_path(b, "primal", 100, 2000)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    left_out = compare.compare(a, b).left_out
    assert "schema version 99, this program reads 1" in left_out[0]
    assert left_out[1] == "A: 1 measurement of primal, in B: not there"


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
    with pytest.raises(ValueError, match="have no point that ended in one of them and was tried in the other"):
        compare.compare(*folders([made()], [made("dual")]))


def sitting(primal, dual, keops=STEADY, n=1000):
    """The paper's variants at one point, and two that are in no map of theirs: faster than all, and 1.5 x slower."""
    epochs_of = {"primal": primal, "dual": dual, "primal-keops": epochs(5, keops)}
    fast = {"primal-fourier": epochs(0.01), "primal-fused": epochs(0.5), "dual-fused": epochs(0.75)}
    return [made(variant, n, epoch_s=each) for variant, each in (epochs_of | fast).items()]


WIDE, WIDER = [0.09, 0.1, 0.1, 0.101, 0.11, 0.112], [0.08, 0.1, 0.1, 0.1, 0.1, 0.2]


@pytest.mark.parametrize(
    ("a", "b", "verdict", "winners"),
    [
        ((STEADY, epochs(2)), (epochs(3), epochs(6)), "same", (("primal",), ("primal",))),
        ((WIDE, epochs(1.05)), (epochs(1.05), WIDE), "equal", (("primal", "dual"), ("dual", "primal"))),  # a tie
        ((WIDE, epochs(1.05)), (STEADY, epochs(2)), "equal", (("primal", "dual"), ("primal",))),
        ((WIDER, epochs(1.3)), (epochs(2), STEADY), "equal", (("primal", "dual"), ("dual",))),  # far apart, but a tie
        ((STEADY, epochs(1.05)), (epochs(1.05), STEADY), "equal", (("primal",), ("dual",))),  # within the threshold
        ((STEADY, epochs(1.3)), (epochs(1.05), STEADY), "differ", (("primal",), ("dual",))),
        ((STEADY, epochs(1.3)), (epochs(1.3), STEADY), "differ", (("primal",), ("dual",))),
    ],
)
def test_two_sittings_differ_only_where_the_winners_share_nothing(folders, a, b, verdict, winners):
    found = compare.compare(*folders(sitting(*a), sitting(*b)))
    paper, exact = found.points.itertuples()
    assert (paper.among, paper.n, paper.p) == ("the paper's variants", 1000, 100)
    assert ((paper.a, paper.b), paper.verdict) == (winners, verdict)
    assert (exact.a, exact.b, exact.verdict) == (("primal-fused",), ("primal-fused",), "same")
    text = compare.describe(found)
    counts = ", ".join(f"{name} {int(name == verdict)}" for name in ("same", "equal", "differ"))
    assert f"The fastest of the paper's variants at 1 points (n, p): {counts}" in text
    assert ("n = 1000     p = 100    primal -> dual" in text) == (verdict == "differ")


def test_a_winner_that_one_side_says_nothing_about_is_no_difference(folders):
    slow, fast = sitting(STEADY, epochs(2)), sitting(STEADY, epochs(2))
    fast[0] = made("primal", status="missing_dependency")
    (paper, _) = compare.compare(*folders(slow, fast)).points.itertuples()
    assert (paper.a, paper.b, paper.verdict) == (("dual",), ("dual",), "same")
    fast[0] = made("primal", status="oom")  # that is one
    (paper, _) = compare.compare(*folders(slow, fast)).points.itertuples()
    assert (paper.a, paper.b, paper.verdict) == (("primal",), ("dual",), "differ")


def test_an_approximation_is_compared_and_called_so(folders):
    a, b = sitting(STEADY, epochs(2)), sitting(STEADY, epochs(2))
    b[3] = made("primal-fourier", epoch_s=epochs(0.02))
    found = compare.compare(*folders(a, b))
    assert not {"primal-fourier"} & {variant for point in found.points.itertuples() for variant in point.a + point.b}
    assert "primal-fourier (approximate) n = 1000" in compare.describe(found)


def test_whole_fits_are_compared_by_quality_and_time(folders):
    a, b = folders([made()], [made()])
    assert compare.compare(a, b).fits == []
    for folder, factor in ((a, 1), (b, 2)):
        (folder / "scale").mkdir()
        rows = [
            f"primal-fourier,1000,ok,{factor * 3},0.2,0.5\n",
            f"primal-fourier,1000,ok,{factor * 5},0.1,0.0{factor}\n",
            "primal,1000,ok,7,0.1,0.03\n",
            "quantised-gw,1000,timeout,,,\n",
        ]
        (folder / "scale" / "scale.csv").write_text("method,n,status,seconds,loss,foscttm\n" + "".join(rows))
    assert [" ".join(line.split()) for line in compare.compare(a, b).fits] == [
        "Quality against time, whole fits: seconds a start, FOSCTTM at the lowest loss (0 is best):",
        "primal-fourier (approximate) n = 1000 4 -> 8 s, 0.010 -> 0.020",
        "primal n = 1000 7 -> 7 s, 0.030 -> 0.030",
    ]
    (b / "scale" / "scale.csv").write_text("method,n\nprimal,1000\n")
    assert compare.compare(a, b).fits == []


@pytest.mark.parametrize("ns", [range(1000, 6000, 1000), range(1000, 27_000, 1000)])
def test_the_picture_is_no_wider_than_a_page(folders, ns):
    a = [made(variant, n) for variant in ("primal", "dual", "published-primal-keops", "original-2019") for n in ns]
    found = compare.compare(*folders(a, a))
    figure = comparison.draw(dataclasses.replace(found, a="results/" + 20 * "a-long-name-"))
    FigureCanvasAgg(figure).draw()
    assert figure.get_tightbbox().x1 <= figure.get_figwidth() + 0.02 <= PAGE + 0.02
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    assert len(texts) == (len(a) if len(ns) < 10 else 0)  # numbers where they have room
    assert {text.get_fontsize() for text in texts} <= {9}


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
