"""What an approximation declares, and that it is held to it: planted faults in the checks of every variant."""

import importlib
import shutil
import sys

import common
import pytest
from conftest import ROOT
from reports import LOSSES, planted, study_of, written

import mmdma_core
from benchmarks import figures
from benchmarks.analysis import compare
from benchmarks.analysis.table import to_frame
from benchmarks.experiments import correctness
from benchmarks.measuring import records
from benchmarks.report import evidence, overview, verdict
from mmdma_core import registry


@pytest.fixture
def plugin(monkeypatch):
    """The variants of tests/approximate.py, for one test."""
    monkeypatch.setattr(registry, "_VARIANTS", dict(registry._VARIANTS))
    monkeypatch.delitem(sys.modules, "approximate", raising=False)
    return importlib.import_module("approximate")


def failed(name):
    """Whether a check of every variant fails in some problem: what `pytest tests/test_variants.py -k NAME` runs."""
    try:
        for case in common.CASES:
            common.check_loss_and_gradients(name, case)
        common.check_training(name)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("nonsense", True),
        ("nothing", True),  # whatever it declares
        ("only-noise", True),  # in which a wrong mean could hide
        ("no-gradient", True),
        ("shrunk", True),
        ("shrunk-and-says-so", False),
        ("pairs", False),
    ],
)
def test_nonsense_does_not_pass_the_checks(plugin, name, fails):
    assert failed(name) == fails


def test_what_is_found_says_what_is_off_and_by_how_much(plugin):
    wrong = [str(found) for found in correctness.deviations("shrunk", common.CASES[0], "cpu") if not found.within]
    assert any(words.startswith("mmd, on average, is off by 0.0") for words in wrong)


def test_another_objective_is_not_compared_and_is_no_exact_variant(plugin):
    assert not mmdma_core.variant("energy").exact
    with pytest.raises(ValueError, match="another objective: the energy distance"):
        next(correctness.deviations("energy", common.CASES[0], "cpu"))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"exact": False, "tolerance": 0.5}, "bias <= tolerance <= 0.25 must hold"),
        ({"exact": False, "bias": 0.2}, "bias <= tolerance"),
        ({"exact": False, "tolerance": 0.0}, "tolerance be above 0"),
        ({"exact": False, "tolerance": float("nan")}, "got bias = 0.0, tolerance = nan"),
        ({"tolerance": 0.2}, "tolerance is of an approximation of MMD-MA, which says exact=False"),
        ({"objective": "another", "bias": 0.1}, "bias is of an approximation"),
        ({"objective": " "}, "objective must say in a few words"),
    ],
)
def test_what_cannot_be_declared(declared, words):
    with pytest.raises(ValueError, match=words):
        mmdma_core.register("cannot-be", label="a", reference="b", **declared)(None)
    assert "cannot-be" not in mmdma_core.variants()


FAST = {"primal": 3.0, "primal-keops": 4.0, "nonsense": 0.2, "energy": 0.1}  # seconds of each


@pytest.fixture
def drawn(plugin, tmp_path):
    """A study in which nonsense is the fastest but for another objective, which also reaches the largest n."""
    losses = {"nonsense": LOSSES | {"mmd": 0.0}, "energy": LOSSES | {"mmd": 99.0}}
    made = [
        planted(name, n, p, seconds, early=losses.get(name, LOSSES))
        for name, seconds in FAST.items()
        for p in (10, 20)
        for n in (100, 200)
        if name == "energy" or n == 100
    ]
    return made, study_of(tmp_path / "here", made, variants=FAST)


def texts_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_figures_mark_nonsense_and_draw_another_objective_apart(drawn):
    made, asked = drawn
    found = dict(zip(figures.NAMES, figures._figures(asked, to_frame(made)), strict=True))
    for name in ("runtimes_all", "memory"):
        texts = texts_of(found[name])
        assert texts[texts.index("approximate") + 1] == "\u2260 nonsense"
        assert texts[texts.index("another objective") + 1] == "energy"
        assert "\u2260 losses unlike its family's" in texts
        assert sum(text.startswith("\u2260") for text in texts) == 2
    for name in ("figure_1a", "fastest_of_all"):
        assert texts_of(found[name])[0] == "primal"
        assert not any("energy" in text or "nonsense" in text for text in texts_of(found[name]))


def test_a_wrong_winner_is_marked_in_the_map(drawn):
    made = [one for one in drawn[0] if one.variant in ("primal", "primal-keops")]
    made += [planted("primal-fused", 100, p, 0.1, early=LOSSES | {"mmd": 0.0}) for p in (10, 20)]
    found = dict(zip(figures.NAMES, figures._figures(drawn[1], to_frame(made)), strict=True))
    assert texts_of(found["figure_1a"])[0] == "primal"
    asked = study_of(drawn[1].root, made, variants=["primal", "primal-keops", "primal-fused"])
    found = dict(zip(figures.NAMES, figures._figures(asked, to_frame(made)), strict=True))
    assert {"\u2260 primal, fused", "\u2260 losses unlike its family's"} <= set(texts_of(found["fastest_of_all"]))


def test_the_report_marks_them_and_counts_them_nowhere(drawn):
    html = written(drawn[1])
    assert '<span class="apart">\u2260</span> <code>nonsense</code>' in html
    assert '<span class="apart">\u2260</span> <code>primal</code>' not in html
    assert "2 of 4; another objective: the energy distance" not in html
    assert "4 of 4; another objective: the energy distance" in html
    found = evidence.gather(drawn[1])
    said = " ".join(verdict.sentences(found))
    assert "marked \u2260: `nonsense` at 2 points." in said
    assert "Of another objective, so drawn apart and in no map of the fastest: `energy` (the energy distance)." in said
    assert "`energy` at" not in said
    largest = overview._largest(found)
    assert (largest.number, "energy" in largest.words) == ("100", False)


def test_compare_has_them_in_no_map_and_says_what_they_are(drawn):
    root = drawn[1].root
    found = compare.compare(root, root)
    assert not {"energy", "nonsense"} & {name for point in found.points.itertuples() for name in point.a + point.b}
    assert compare.remark("energy") == " (another objective: the energy distance)"


def test_as_a_plugin_of_config_yaml_they_are_measured_and_marked(project, command, configure):
    shutil.copy(ROOT / "tests" / "approximate.py", project)
    asked = ["primal", "nonsense", "energy"]
    configure({"n": [100], "p": [10], "variants": asked}, plugins=["approximate"], machine="here")
    command("sweep")
    root = project / "results" / "here"
    found = {record.variant: record.status for record in records.read_all(root)}
    assert found == dict.fromkeys(asked, "ok")
    command("table")
    command("figures")
    assert "\u2260 nonsense" in (root / "figures" / "runtimes_all.svg").read_text()
    command("report")
    assert "another objective: the energy distance" in (root / "report.html").read_text()
