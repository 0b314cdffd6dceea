"""This machine against the published V100: planted agreements, differences and gaps come out as what they are."""

import math

import pandas as pd
import pytest
from test_records import record

from benchmarks.analysis import against_paper, published
from benchmarks.analysis.table import to_frame
from benchmarks.figures import against_paper as figure

PAPER = ("primal", "primal-keops", "dual", "dual-keops")
# What no panel of the published plot tells: near dual with KeOps, as the hidden markers are, or slower.
HIDDEN = {("dual", 4000): 6.5, ("dual", 5000): 9.5, ("primal-keops", 10_000): 30, ("primal-keops", 15_000): 35}


def cell(variant, n, p, seconds, gpu_gib=16, device="cuda", status="ok", d=10, **fields):
    made = record(variant, n, p, status, limits={"gpu_gib": gpu_gib}, **fields)
    made.device, made.d = device, d
    if status == "ok":
        made.epoch_s = made.epoch_s if "epoch_s" in fields else [seconds / 500] * 6
        made.set_runtime()
    return made


@pytest.fixture(scope="module")
def twice():
    """(variant, n, p) -> record of a machine that takes twice the published time everywhere, on 16 GiB."""
    known = published.runtimes().set_index(["variant", "n", "p"])["runtime_s"].to_dict()
    ns, ps = published.grid()
    cells = {}
    for variant in PAPER:
        for n in ns:
            for p in ps:
                seconds = known.get((variant, n, p))
                if seconds is None:
                    cells[variant, n, p] = cell(variant, n, p, None, status="oom")
                else:
                    shown = HIDDEN[variant, n] if math.isnan(seconds) else seconds
                    cells[variant, n, p] = cell(variant, n, p, 2 * shown)
    return cells


def changed(cells, *records):
    return to_frame(list((cells | {(r.variant, r.n, r.p): r for r in records}).values()))


def at(frame, n, p):
    return frame[(frame["n"] == n) & (frame["p"] == p)].iloc[0]


def test_no_two_runtimes_of_one_panel_contradict_the_winners_that_figure_1a_shows():
    read = published.runtimes().query("source == 'read'")
    checked = 0
    for (n, p), panel in read.groupby(["n", "p"]):
        seconds = panel.set_index("variant")["runtime_s"]
        if published.described(n, p) in seconds:
            assert seconds[published.described(n, p)] <= published.APART * seconds.min()
            checked += 1
    assert checked > 100
    shown = published.published_winners().groupby("winner").size()
    assert shown["nothing fits"] == sum(
        n > end for end in LAST.values() for n in published.grid()[0]
    )  # where LSMMD-MA has ended
    assert at(published.published_winners(), 15_000, 2000).hidden == ("primal-keops",)


LAST = dict.fromkeys((10, 100, 1000), 1_000_000) | {2000: 700_000, 3000: 400_000, 4000: 300_000}
LAST |= dict.fromkeys((5000, 6000, 7000), 200_000) | dict.fromkeys((8000, 9000, 10_000), 100_000)


def test_a_machine_of_half_the_speed_has_ratio_2_everywhere(twice):
    ratios = against_paper.ratios(changed(twice))
    assert len(ratios) == published.runtimes()["runtime_s"].notna().sum()
    assert ratios["ratio"].to_numpy() == pytest.approx(2)
    summary = against_paper.ratio_summary(ratios).set_index("variant")
    assert summary.loc["primal", ["points", "lowest", "median", "highest"]].tolist() == pytest.approx([96, 2, 2, 2])


def test_the_ratio_follows_the_published_clock():
    table = to_frame([cell("published-primal", 1000, 10, 6.4, prepare_s=100.0)])
    assert against_paper.ratios(table)["ratio"].tolist() == pytest.approx([2])
    half = cell("primal", 1000, 10, 6.4)
    half.epochs = 250
    half.set_runtime()
    assert against_paper.ratios(to_frame([half]))["ratio"].tolist() == pytest.approx([2])


def test_the_published_map_is_found_again(twice):
    found = against_paper.winners(changed(twice))
    assert len(found) == 26 * 12
    assert set(found["verdict"]) == {"agree", "equal"}
    assert (found["verdict"] == "agree").sum() > 290
    assert at(found, 1_000_000, 10_000)[["here", "verdict"]].tolist() == ["nothing fits", "agree"]
    assert (against_paper.frontier(changed(twice)).query("variant in @PAPER")["verdict"] == "agree").all()
    assert against_paper.other_winners(changed(twice)).empty  # equal is no difference


def test_a_planted_winner_differs_and_the_sentence_has_its_numbers(twice):
    table = changed(twice, cell("primal", 100_000, 10, 200))
    assert at(against_paper.winners(table), 100_000, 10)["verdict"] == "differ"
    assert "primal ran out of memory there" in at(against_paper.winners(table), 100_000, 10)["why"]
    table = changed(twice, cell("primal", 20_000, 10, 20))
    row = at(against_paper.winners(table), 20_000, 10)
    assert row[["here", "there", "verdict"]].tolist() == ["primal", "primal-keops", "differ"]
    row = at(against_paper.other_winners(table), 20_000, 10)
    assert (row["there_ratio"], row["here_ratio"]) == pytest.approx((121.4 / 23.3, 46.6 / 20))
    said = against_paper.in_short(table)[0]
    assert said.startswith("primal is the fastest here, primal-keops there at 1 point (n = 20,000, p = 10): ")
    assert "5.21 x apart there and 2.33 x apart here" in said


def test_published_overhead_is_named_as_the_cause(twice):
    """From 1000 to 2000 cells the published dual hardly grows: it waits for launches."""
    table = changed(twice, cell("primal", 2000, 3000, 2))
    row = at(against_paper.other_winners(table), 2000, 3000)
    assert row["cause"] == "the published time of dual grows much less than the work: overhead, not arithmetic"


@pytest.mark.parametrize(
    ("record", "verdict", "words"),
    [
        (cell("primal", 4000, 3000, 1, gpu_gib=None, status="missing_dependency"), "untestable", "primal (missing_dep"),
        (cell("primal", 4000, 3000, None, status="timeout"), "agree", ""),
        (cell("dual", 3000, 10, None, status="timeout"), "differ", "dual came to no end here (timeout)"),
        (cell("dual-keops", 4000, 3000, 10), "equal", "reading error of 7 % there"),
        (cell("primal-keops", 4000, 3000, 12.9, epoch_s=[0.0257, 0.0258, 0.03]), "equal", "spread of the epochs here"),
        (cell("primal-keops", 4000, 3000, 9), "differ", "dual was faster there"),
        (cell("primal-keops", 15_000, 2000, 1), "untestable", "hidden there behind"),
        (cell("primal-keops", 1_000_000, 10_000, 1), "differ", "ran out of memory there, not here"),
        (cell("primal-keops", 1_000_000, 10_000, 1, gpu_gib=80), "untestable", "memory here is not the 16 GiB"),
        (cell("dual", 2000, 10, None, status="oom"), "differ", "dual ran out of memory here"),
        (cell("dual", 2000, 10, None, status="oom", device="cpu"), "untestable", "not the 16 GiB"),
    ],
)
def test_each_kind_of_verdict(twice, record, verdict, words):
    if words.startswith("spread"):
        twice = twice | {("dual", 4000, 3000): cell("dual", 4000, 3000, 13, epoch_s=[0.0259, 0.026, 0.02565])}
        twice |= {("dual-keops", 4000, 3000): cell("dual-keops", 4000, 3000, 30)}
    row = at(against_paper.winners(changed(twice, record)), record.n, record.p)
    assert row["verdict"] == verdict
    assert words in row["why"]


def test_what_was_not_measured_is_untestable_and_said(twice):
    table = to_frame([twice["primal", 1000, 10]])
    found = against_paper.winners(table)
    assert set(found["verdict"]) == {"untestable"}
    assert at(found, 1000, 10)["why"] == (
        "not measured here: primal-keops (not tried), dual (not tried), dual-keops (not tried)"
    )
    assert at(found, 2000, 10)["why"] == "not measured here"


def test_other_d_and_other_points_are_left_out_with_a_sentence(twice):
    table = to_frame([twice["primal", 1000, 10], cell("primal", 2000, 10, 1, d=5), cell("primal", 777, 10, 1)])
    kept, said = against_paper.comparable(table)
    assert len(kept) == 1
    assert said == [
        "left out: 1 rows with d = 5, where the published study has 10",
        "left out: 1 points (n, p) measured here that are not in the published grid",
    ]


def test_the_frontier_is_measured_with_16_gib_and_predicted_without():
    early = cell("dual", 10_000, 10, None, status="oom")
    slow = cell("dual", 15_000, 10, None, status="timeout")
    rows = against_paper.frontier(to_frame([early, slow])).query("variant == 'dual' and p == 10").set_index("n")
    assert rows.loc[10_000, ["here", "there", "basis", "verdict"]].tolist() == [False, True, "measured", "differ"]
    assert rows.loc[15_000, ["basis", "verdict"]].tolist() == ["measured", "untestable"]
    assert rows.loc[20_000, ["here", "there", "basis", "verdict"]].tolist() == [False, False, "predicted", "agree"]
    for other in (cell("dual", 10_000, 10, None, 80, status="oom"), cell("dual", 10_000, 10, None, 16, "cpu", "oom")):
        assert set(against_paper.frontier(to_frame([other]))["basis"]) == {"predicted"}
    words = "dual goes less far on 16 GiB than was published, at p = 10 to n = 5,000 of the grid (there 15,000)"
    assert any(said.startswith(words) for said in against_paper.in_short(to_frame([early])))


def test_the_published_jump_is_found_where_it_is_planted(twice):
    assert at_p(against_paper.jumps(changed(twice)), "found") == [10, 100, 1000, 2000]
    smooth = [cell("primal-keops", 40_000, p, 2 * 32 * 16 / 9) for p in (10, 100)]
    found = against_paper.jumps(changed(twice, *smooth))
    assert at_p(found, "not found") == [10, 100]
    assert found.loc[found["p"] == 10, ["work", "there", "here"]].to_numpy().ravel() == pytest.approx(
        [16 / 9, 4.89, 16 / 9], rel=1e-2
    )
    sentences = against_paper.in_short(changed(twice, *smooth))
    assert any("at p = 10 is not found: 1.8 x here, 4.9 x there, the work grows 1.8 x" in said for said in sentences)
    assert at_p(against_paper.jumps(to_frame([cell("primal-keops", 30_000, 10, 1)])), "not tested here") == [
        10,
        100,
        1000,
        2000,
    ]
    planted = cell("primal-keops", 40_000, 10_000, 1e5)
    assert at_p(against_paper.jumps(changed(twice, planted)), "only here") == [10_000]


def at_p(found, verdict):
    return found.loc[found["verdict"] == verdict, "p"].tolist()


def test_cells_of_one_cause_share_a_sentence(twice):
    table = changed(twice, *(cell("primal", n, 10, 20) for n in (15_000, 20_000)))
    first = against_paper.in_short(table)
    (said,) = [sentence for sentence in first if "at 2 points (n = 15,000 to 20,000, p = 10)" in sentence]
    assert said.startswith("primal is the fastest here, primal-keops there at 2 points")
    assert "5.22 x apart there and 1.91 x apart here, the median" in said


def test_the_map_shows_every_cell_and_splits_those_that_differ(twice):
    table = changed(twice, cell("primal", 20_000, 10, 20), cell("primal", 777, 10, 1))
    drawn = figure.draw(table, "title")
    above, below = drawn.axes
    shapes = [type(patch).__name__ for patch in above.patches]
    winners = against_paper.winners(table)["verdict"].value_counts()
    assert shapes.count("Rectangle") == 26 * 12
    assert shapes.count("Polygon") == winners["differ"] + winners["equal"]
    assert len(above.texts) == winners["equal"]
    assert "1 differ" in above.get_title(loc="left")
    assert "not in the published grid" in drawn.get_suptitle()
    assert [text.get_text() for text in below.texts][2] == "2 x, 60 points"


def test_a_study_beyond_the_published_grid_has_a_picture_that_says_so():
    drawn = figure.draw(to_frame([cell("primal", 100, 10, 1)]), "title")
    assert "312 untestable" in drawn.axes[0].get_title(loc="left")
    assert {text.get_text() for text in drawn.axes[1].texts} == {"none"}


def test_nothing_measured_at_all():
    empty = to_frame([cell("primal", 1000, 10, None, status="error")])
    assert against_paper.ratios(empty).empty
    assert set(against_paper.winners(empty)["verdict"]) == {"untestable"}
    assert isinstance(against_paper.in_short(empty), list)
    assert pd.isna(against_paper.jumps(empty)["here"]).all()
