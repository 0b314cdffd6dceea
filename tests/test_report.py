"""The report: what it counts, what it leaves out, and what it says."""

import dataclasses
import json
import math
import re

import pytest
from reports import LOSSES, MACHINE, RUNTIMES, grid, planted, study_of, written

import mmdma_core
from benchmarks import figures
from benchmarks.analysis import agreement
from benchmarks.analysis.table import to_frame, to_full_frame
from benchmarks.report import evidence, measured, noise, overview, page, verdict
from benchmarks.report.page import at, listing, number, percent, spans
from mmdma_core import Settings

# What is counted


def test_an_empty_folder_is_said_in_the_page(tmp_path):
    html = written(study_of(tmp_path / "here"))
    assert "holds no record that counts, so there is no verdict" in html
    assert "<table" in html  # how to cite stays


def test_a_folder_that_is_not_there_is_refused(tmp_path, command, configure):
    configure({"n": [100], "p": [10], "variants": ["primal"]})
    assert "here is not there: run a sweep first" in command("report", status=2)


def test_another_schema_is_left_out_by_name(tmp_path):
    study = study_of(tmp_path / "here", grid(RUNTIMES))
    path = study.path("dual", 100, 10)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    found = evidence.gather(study)
    assert len(found.table) == 11
    first, second = found.notes
    assert first == f"Left out: 1 unreadable: {path}: schema version 2, this program reads 1."
    assert "differs from the records counted here in 1 measurement" in second  # its figures still have that cell


def test_of_two_machines_the_one_with_more_records_counts(tmp_path):
    other = MACHINE | {"cpu": "another CPU"}
    made = [*grid(RUNTIMES), planted("dual", 100, 10, 0.001, machine=other)]
    found = evidence.gather(study_of(tmp_path / "here", made))
    assert set(found.table["cpu"]) == {"a CPU"}
    assert len(found.table) == 11
    (note,) = found.notes  # the figures leave it out as well
    assert note.startswith("Left out: 1 measurement of another CPU")


def test_a_variant_that_is_gone_is_in_the_table_alone(tmp_path):
    study = study_of(tmp_path / "here", [*grid(RUNTIMES), planted("gone", 100, 10, 0.001)])
    found = evidence.gather(study)
    assert found.notes[0].startswith(
        "In the full table and nowhere else: 1 measurement of gone, which is not registered"
    )
    assert "gone" in set(found.table["variant"])
    assert "gone" not in set(found.grid["variant"])
    assert "Not registered any more, so without a reference: <code>gone</code>" in written(study)


def test_what_lies_outside_the_study_is_named(tmp_path):
    made = [*grid(RUNTIMES), planted("dual", 900, 10), planted("dual-keops", 100, 10)]
    found = evidence.gather(study_of(tmp_path / "here", made))
    assert len(found.notes) == 2
    assert "1 measurement of dual-keops" in found.notes[0]
    assert "1 measurement at n = 900" in found.notes[1]
    assert (len(found.table), len(found.grid)) == (14, 12)


def test_other_epochs_are_named(tmp_path):
    made = grid(RUNTIMES)
    made[0].epochs = 5
    (note,) = evidence.gather(study_of(tmp_path / "here", made)).notes
    assert note.startswith(
        "1 measurement was made with d = 10, 5 epochs and seed 4, where the study asks for d = 10, 500"
    )


def test_nothing_is_noted_where_all_is_well(tmp_path):
    study = study_of(tmp_path / "here", grid(RUNTIMES))
    assert evidence.gather(study).notes == []
    assert '<aside class="notes"' not in written(study)


@pytest.mark.parametrize("absent", ["figure_1b.png", "figure_1b.svg"])
def test_a_figure_that_is_not_there_is_named(tmp_path, absent):
    study = study_of(tmp_path / "here", grid(RUNTIMES))
    (study.root / "figures" / absent).unlink()
    html = written(study)
    assert f"{absent}</code> is not there, so figure_1b is left out" in html
    assert html.count("<img ") == len(figures.NAMES) - 1


# The verdict


def said(tmp_path, made, **more):
    return " ".join(verdict.sentences(evidence.gather(study_of(tmp_path / "here", made, **more))))


def test_the_verdict_counts_and_names_the_winners(tmp_path):
    text = said(tmp_path, grid(RUNTIMES)[:-1])
    assert "On a CPU, 2 threads, of the 12 measurements of the study `test`" in text
    assert "11 came to an end and 1 has no record" in text
    assert "fastest of the paper's variants is `dual` at 4" in text
    assert "fastest of all exact variants is `primal-fused` at 3 (n = 100 to 200, p = 10 to 20)" not in text
    assert "`primal-fused` at 3 and `dual` at 1 (n = 200, p = 20)" in text
    assert "it is 4 times as fast as the fastest of those in the median (4 to 4)" in text
    assert "All 11 runtimes are extrapolated" in text


def test_the_verdict_says_where_memory_ends_whom(tmp_path):
    ends = {"primal": [20], "dual": [10, 20], "primal-fused": []}
    made = [
        planted(variant, n, p, status="oom" if n == 200 and p in ps else "ok")
        for variant, ps in ends.items()
        for n in (100, 200)
        for p in (10, 20)
    ]
    text = said(tmp_path, made)
    assert "3 ran out of memory" in text
    assert "`primal` at 1 (n = 200, p = 10), several, equally fast, at 2 (`dual` = `primal` at 2) and none at 1" in text
    assert "Memory (limit 0.5 GiB) ends `primal` from n = 200 at p = 20; `dual` from n = 200 at every p." in text
    assert "Nothing ran out of memory" in said(tmp_path, grid(RUNTIMES))


def test_a_tie_is_counted_as_one(tmp_path):
    made = [planted("primal", 100, 10, 2.0, epoch_s=[0.0038, 0.004, 0.0045]), planted("dual", 100, 10, 2.2)]
    made += [planted("primal", 200, 10, 2.0), planted("dual", 200, 10, 2.2)]
    found = evidence.gather(study_of(tmp_path / "here", made, p=[10], variants=["primal", "dual"]))
    text = " ".join(verdict.sentences(found))
    assert "`primal` at 1 (n = 200, p = 10) and several, equally fast, at 1 (`dual` = `primal` at 1)." in text
    assert found.paper_winners[100, 10] == ("primal", "dual")
    assert "p = 10: dual = primal at n = 100 and primal at n = 200." in written(found.study)


# The facts at the head


def test_the_facts_have_the_numbers_of_the_records(tmp_path):
    made = [*grid(RUNTIMES), planted("primal-fourier", 1000, 10)]
    made[0] = planted("primal", 100, 10, status="oom")
    made[1] = planted("primal", 200, 10, epoch_s=[0.1, 0.2, 0.3, 0.9])
    variants = [*RUNTIMES, "primal-fourier"]
    study = study_of(tmp_path / "here", made, n=(100, 200, 1000), variants=variants)
    found = list(overview._facts(evidence.gather(study)))
    assert [f"{fact.number} {fact.words}" for fact in found] == [
        "12 of 24 measurements came to an end; 1 out of memory, 11 otherwise",
        "4 of 6 points (n, p) where `dual` is the fastest of the paper's variants; none ended\N{NO-BREAK SPACE}2",
        "4 x in the median, the fastest exact variant over the fastest of the paper's (4 to 4 x, at 4 of 6 points)",
        "1,000 cells, the largest n, reached by `primal-fourier` (approximate); exact: 200, by `primal`, `dual` and "
        "`primal-fused`",
        "0 of 0 points that can be tested have the winner of the published map; 0 equal, 0 differ",
        "0 of 12 losses stand apart from their family",
        "12 of 12 runtimes are extrapolated from fewer epochs",
        "0 % spread of the epochs of a measurement, in the median; above 25 % in 1 of 12",
    ]
    html = written(study)
    for fact in found:
        assert f'<section id="{page.anchor(fact.title)}"' in html
    assert html.index('class="facts"') < html.index('id="verdict"')


@pytest.mark.parametrize(
    "made",
    [grid(dict.fromkeys(RUNTIMES)), grid({"dual": 1.0}), grid({"primal-fused": 1.0}), grid({"linear-time": 1.0})],
)
def test_facts_without_much_to_tell(tmp_path, made):
    study = study_of(tmp_path / "here", made, variants=list({record.variant for record in made}))
    found = list(overview._facts(evidence.gather(study)))
    assert 1 <= len(found) <= 8
    html = written(study)
    assert all(f'<section id="{page.anchor(fact.title)}"' in html for fact in found)


def test_no_winner_is_no_error(tmp_path):
    text = said(tmp_path, grid(dict.fromkeys(RUNTIMES)))
    assert "Of the paper's variants, none came to an end anywhere." in text


D, DK, PK, P, NONE = [(name,) for name in ("dual", "dual-keops", "primal-keops", "primal", "nothing fits")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[D, PK, PK, PK], [D, D, DK, PK]], ["is **seen**", "never falls"]),
        ([[D, PK, PK, NONE], [D, D, DK, PK]], ["is **seen**"]),  # the last n at which anything ended
        (
            [[D, PK, PK, PK], [D, P, DK, PK]],
            ["is **seen in part**", "`primal`, which wins nowhere in the paper, wins at 1"],
        ),
        ([[D, D, DK, PK], [D, PK, PK, PK]], ["is **seen in part**", "does not always rise"]),
        ([[P, P, P, P], [P, P, P, P]], ["is **not seen**", "wins at the smallest n at no p", "wins at 8 points"]),
        ([[D, NONE, NONE, NONE], [D, PK, NONE, NONE]], ["cannot be told from so few points"]),
        ([[P + D, PK, PK, PK + P], [D, D, P + DK, DK + PK]], ["is **seen**", "never falls"]),  # a tie fits both
        ([[D, D, PK + DK, PK], [D, PK + D, PK, PK]], ["is **seen**", "never falls"]),  # from the third n on at both
        ([[D, D, DK, PK], [D, PK + D, PK, PK]], ["does not always rise"]),
        ([[D, P + D, PK, PK], [D, D, P, PK]], ["`primal`, which wins nowhere in the paper, wins at 1 point."]),
    ],
)
def test_the_pattern_of_the_paper(rows, expected):
    ns, ps = (1, 2, 3, 4), (10, 20)
    found = {(n, p): what for p, row in zip(ps, rows, strict=True) for n, what in zip(ns, row, strict=True)}
    (sentence,) = verdict.pattern(found, ns, ps)
    for words in expected:
        assert words in sentence


# Losses and noise


@pytest.mark.parametrize(
    ("mmd", "expected"),
    [
        ({"primal": 0.5, "primal-keops": 0.5, "dual": 0.1, "dual-keops": 0.1}, {}),
        ({"primal": 0.5, "primal-keops": 0.5, "primal-fused": 0.4, "dual": 0.1}, {"primal-fused": "primal"}),
        ({"primal": 0.5, "primal-keops": 0.4}, {"primal": "primal-keops", "primal-keops": "primal"}),
        ({"dual": 0.1, "original-2019": 0.2}, {}),  # biased against unbiased
        ({"primal": 0.5, "linear-time": 0.45}, {}),  # within what it declares
        ({"primal": 0.5, "linear-time": 0.0}, {"linear-time": "primal"}),
        ({"primal": 0.5, "linear-time": 1e3}, {"linear-time": "primal"}),
        ({"primal": 0.5, "linear-time": math.nan}, {"linear-time": "primal"}),
        (
            {"primal": 0.5, "primal-fused": 0.4, "linear-time": 0.0},
            {"primal": "primal-fused", "primal-fused": "primal"},
        ),
        ({"dual": 0.5, "linear-time": 0.0}, {}),  # another family
        ({"primal": 0.5, "gone": 0.0}, {}),
    ],
)
def test_who_stands_apart(mmd, expected):
    made = [planted(variant, 1000, 10, early=LOSSES | {"mmd": value}) for variant, value in mmd.items()]
    found = agreement.apart(to_frame(made), Settings())
    assert {variant: who.other for (variant, _, _), who in found.items()} == expected


def test_what_the_noise_of_an_estimate_hides_in_one_cell_shows_over_many():
    def apart(count, factor):
        made = []
        for p in range(1, count + 1):
            made += [planted("primal", 400, p, early=LOSSES | {"mmd": 0.1})]
            made += [planted("linear-time", 400, p, early=LOSSES | {"mmd": 0.1 + factor * 0.035 * (-1) ** p})]
            made += [planted("primal-fourier", 400, p, early=LOSSES | {"mmd": 0.1 + factor * 0.035})]
        return {variant for variant, _, _ in agreement.apart(to_frame(made), Settings())}

    assert apart(1, 1) == set()
    assert apart(12, 1) == {"primal-fourier"}


def test_a_planted_wrong_loss_is_marked(tmp_path):
    made = [planted(variant, 100, 10) for variant in ("primal", "primal-keops")]
    made.append(planted("primal-fused", 100, 10, early=LOSSES | {"pen_y": 2.1, "total": 7.25}))
    html = written(
        study_of(tmp_path / "here", made, n=[100], p=[10], variants=["primal", "primal-keops", "primal-fused"])
    )
    assert "1 of 3 losses stand apart" in html
    assert '<span class="apart">≠ 7.25</span>' in html
    assert "pen_y: 4.76\N{NO-BREAK SPACE}%" in html.replace(" %", "\N{NO-BREAK SPACE}%")


def test_spread_and_drift_of_known_epochs():
    assert noise.spread([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]) == pytest.approx((1.5 / 2.0, 3.0))
    assert noise.spread([1.0] * 9)[0] == 0


def test_the_noisy_cell_comes_first(tmp_path):
    made = grid(RUNTIMES)
    made[5] = planted("dual", 200, 10, epoch_s=[0.1, 0.2] * 4)
    made[6] = planted("dual", 100, 20, epoch_s=[0.1, 0.9])  # two epochs tell no spread
    section = noise.section(evidence.gather(study_of(tmp_path / "here", made)))
    worst = section.html.split("noisiest measurements")[-1]
    assert re.search(r'<tbody>\s*<tr>\s*<th scope="row">dual</th>\s*<td class="number">200</td>', worst)
    assert "1 of 12 measurements timed fewer than 4 epochs" in section.html


def test_throttling_is_said_where_the_record_says_so():
    gpu = {"name": "a GPU", "max_sm_clock_mhz": 2000}
    fast, slow = (
        planted("dual", n, 10, machine={"gpu": gpu | {"sm_clock_mhz": mhz}}) for n, mhz in ((1, 1980), (2, 900))
    )
    assert "No throttling" in "".join(noise.clocks(to_full_frame([fast])))
    (sentence,) = noise.clocks(to_full_frame([fast, slow]))
    assert "**Throttled:** in 1 measurement of 2" in sentence
    assert "`dual` at n = 2, p = 10: 45 %" in sentence
    assert "no clocks" in "".join(noise.clocks(to_full_frame([planted("dual", 1, 10)])))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number(0.012345), "0.0123"),
        (number(999.7), "1,000"),
        (number(float("nan")), ""),
        (number(1234567), "1,234,567"),
        (percent(0.0714), "7 %"),
        (listing(["a"]), "a"),
        (listing("abcd", most=2), "a, b and 2 more"),
        (spans([1, 2, 4], [1, 2, 3, 4]), "1 to 2 and 4"),
        (at([1, 2], [1, 2], "p"), "every p"),
        (at([1], [1], "p"), "p = 1"),
        (page.code("a `b` < **c** 7 %"), "a <code>b</code> &lt; <strong>c</strong> 7\N{NO-BREAK SPACE}%"),
    ],
)
def test_words(found, expected):
    assert found == expected


def on_node(name, scale, driver="1.2"):
    """Cells as their models of cost have them, times a factor of the node, its second half at p = 20."""
    gpu = {"name": "Fake 9000", "memory_bytes": 2**34, "driver": driver, "sm_clock_mhz": 1000, "max_sm_clock_mhz": 1000}
    who = MACHINE | {"gpu": gpu, "node": name}
    for variant in ("primal", "dual"):
        for n in (100, 200):
            p = 10 if name == "a" else 20
            seconds = 500 * scale * mmdma_core.variant(variant).cost_model(n, p, 10).seconds()
            yield dataclasses.replace(planted(variant, n, p, seconds, machine=who), device="cuda", peak_device_bytes=1)


def test_nodes_of_a_cluster_are_compared(tmp_path):
    made = [*on_node("a", 1.0), *on_node("b", 1.5, driver="1.3")]
    section = measured.nodes(evidence.gather(study_of(tmp_path / "here", made)))
    html = str(section.html)
    assert "8 measurements from 2 nodes." in html
    assert "Their drivers differ." in html
    assert re.findall(r"<td[^>]*>(1\.5|0\.667)</td>", html) == ["0.667", "1.5"]
    alike = [*on_node("a", 1.0), *on_node("b", 1.0)]
    assert "Their drivers are the same." in str(
        measured.nodes(evidence.gather(study_of(tmp_path / "there", alike))).html
    )
    assert measured.nodes(evidence.gather(study_of(tmp_path / "one", on_node("a", 1.0)))) is None
