"""The page of the report: it stands on its own, can be read by all, and lets nothing through."""

import base64
import io
import itertools
import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from conftest import ROOT
from reports import RUNTIMES, grid, planted, study_of, written

from benchmarks import report
from benchmarks.report import overview, page


class Page(HTMLParser):
    """Tags with their attributes, and headings in order."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def html(tmp_path):
    return written(study_of(tmp_path / "here", grid(RUNTIMES | {"dual": None})))


def test_the_page_asks_no_network_for_anything(html):
    page = Page(html)
    assert page.all("script", "style", "img")
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"@import|url\(|fetch\(", html)


def test_the_page_can_be_read_by_those_who_cannot_see_it(html):
    page = Page(html)
    assert all(image["alt"] for image in page.all("img"))
    assert all(heading.get("scope") in ("col", "row") for heading in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)


def test_a_figure_says_in_words_who_wins(html):
    words = next(image["alt"] for image in Page(html).all("img"))
    assert words == "The fastest variant. p = 10: primal at n = 100 to 200. p = 20: primal at n = 100 to 200."


def test_the_table_is_there_to_take_along(tmp_path):
    study = study_of(tmp_path / "here", grid(RUNTIMES))
    links = {a["download"]: a["href"] for a in Page(written(study)).all("a") if "download" in a}
    content = {name: base64.b64decode(uri.split(",", 1)[1]) for name, uri in links.items()}
    assert content["summary.csv"] == (study.root / "summary.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(io.BytesIO(content["summary.parquet"])), pd.read_parquet(study.root / "summary.parquet")
    )
    assert {f"{name}.{kind}" for name in ("figure_1a", "memory") for kind in ("png", "svg")} <= set(content)


def test_what_a_record_says_cannot_become_html(tmp_path):
    study = study_of(tmp_path / "here", [planted("dual", 100, 10, status="error", detail="</script><b onclick=x>`&")])
    html = written(study)
    assert "<b onclick" not in html
    assert "&lt;/script&gt;&lt;b onclick=x&gt;`&amp;" in html


def test_every_end_has_a_mark_and_a_reason(tmp_path):
    ends = {"oom": "M", "timeout": "T", "error": "E", "missing_dependency": "D", "unsupported": "U", "skipped": "b"}
    made = [planted("dual", n, 10, status=status, detail=f"because {n}") for n, status in enumerate(ends, start=11)]
    made.append(planted("dual", 17, 10, status="skipped", implied_end="oom"))
    html = written(study_of(tmp_path / "here", made, n=range(11, 19), p=[10], variants=["dual"]))
    marks = re.findall(r'<td class="mark \w+" title="n = (\d+), p = 10: [^"]+">(.)</td>', html)
    assert [mark for _, mark in sorted(marks)] == [*ends.values(), "m", "·"]
    assert all(f"<td>because {n}</td>" in html for n in range(11, 17))


def test_another_part_of_the_project_can_add_a_section(tmp_path, monkeypatch):
    def extra(found):
        return page.Section("Added here", page.table("a caption", ("x", "y"), [("<one>", 2)], numeric=[1]))

    monkeypatch.setattr(report, "SECTIONS", [overview.verdict_section, extra, lambda found: None])
    html = written(study_of(tmp_path / "here", grid(RUNTIMES)))
    assert html.index('id="verdict"') < html.index('<section id="added-here"')
    assert '<a href="#added-here">Added here</a>' in html
    assert '<th scope="row">&lt;one&gt;</th>' in html


def test_what_is_approximate_is_shown_with_its_quality(tmp_path):
    study = study_of(tmp_path / "here", grid(RUNTIMES))
    assert "Quality against time" not in written(study)
    (study.root / "scale").mkdir()
    for suffix in ("png", "svg"):
        shutil.copy(study.root / "figures" / f"memory.{suffix}", study.root / "scale" / f"scale.{suffix}")
    html = written(study)
    section = html[html.index('<section id="quality-against-time"') :]
    assert 'download="scale.svg"' in section[: section.index("</section>")]


def test_text_and_marks_have_contrast():
    css = (ROOT / "benchmarks" / "report" / "templates" / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    assert set(light) == set(dark)
    for colors in (light, dark):
        pairs = [(text, back) for text in ("ink", "quiet", "accent") for back in ("page", "tint")]
        pairs += [(f"{name}-ink", name) for name in ("ok", "memory", "late", "failed", "absent")]
        for text, back in pairs:
            assert contrast(colors[text], colors[back]) >= 4.5, (text, back)


def contrast(one, other):
    """Ratio of luminances as WCAG 2 defines it."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
