"""README and docs/: their commands and their Python run, their links lead somewhere, no generated page is stale."""

import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\S*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """Code on a page; reason: why it is not run here, if it is not."""

    language: str
    code: str
    reason: str | None


def blocks(page, language):
    found = [Block(b["language"], b["code"], b["reason"]) for b in _BLOCK.finditer(page.read_text())]
    return [block for block in found if block.language == language]


def to_run(language):
    """The code of each page's blocks that are run, one after the other."""
    codes = {page.name: [b.code for b in blocks(page, language) if b.reason is None] for page in PAGES}
    return [pytest.param("\n".join(code), id=name) for name, code in codes.items() if code]


@pytest.fixture
def checkout(project):
    """A copy of the project with its pages and examples."""
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("_build"))
    return project


def run(folder, *command):
    """Run it there as somebody who has installed the project would."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout


FORKED = {"python -m benchmarks ": "benchmarks", "mmdma ": "mmdma"}  # how a line begins: the program that it runs


def forked(line):
    """How the line begins, of those that run in a fork, which spares it its imports; None of another line."""
    return next((words for words in FORKED if line.startswith(words)), None)


@pytest.mark.slow
@pytest.mark.parametrize("code", to_run("sh"))
def test_the_commands_run(checkout, in_folder, code):
    lines = filter(None, code.replace("\\\n", " ").split("\n"))
    for words, group in itertools.groupby(lines, forked):
        if words is None:
            run(checkout, "bash", "-euxo", "pipefail", "-c", "\n".join(group))
            continue
        for line in group:
            arguments = shlex.split(line.removeprefix(words), comments=True)
            in_folder(checkout, *arguments, program=FORKED[words])


@pytest.mark.slow
@pytest.mark.parametrize("code", to_run("python"))
def test_the_python_runs(checkout, in_folder, tmp_path, code):
    (tmp_path / "page.py").write_text(code)
    in_folder(checkout, tmp_path / "page.py", program="python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language_that_is_run_or_shown(page):
    """An indented or a nameless block would be run by nobody."""
    languages = {match["language"] for match in _BLOCK.finditer(page.read_text())}
    assert languages <= {"sh", "python", "text", "yaml", "bibtex", "{toctree}", "{eval-rst}"}
    outside = _BLOCK.sub("", page.read_text())
    assert "```" not in outside
    assert not re.search(r"^ {4,}(make|python|snakemake|mmdma|pip|pytest) ", outside, re.M)
    assert outside.count("<!-- not run") == 0, "a reason stands directly above its block"


def test_the_first_block_of_readme_is_what_ci_runs_word_for_word():
    first = _BLOCK.search((ROOT / "README.md").read_text())
    assert first["language"] == "sh"
    assert re.findall(r"^make \w+", first["code"], re.M) == ["make study", "make test"]
    reader = re.search(r"^commands=\$\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.M)[1]
    read = subprocess.run(["bash", "-c", reader], cwd=ROOT, capture_output=True, text=True, check=True)
    assert read.stdout == first["code"]


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", page.read_text())):
        if not target.startswith(("https://", "mailto:")):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(other), f"{page.name}: {target}"


def test_every_page_is_in_the_table_of_contents():
    shown = re.search(r"```{toctree}\n(.*?)```", (ROOT / "docs" / "index.md").read_text(), re.S)[1].split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(shown)


def test_the_page_of_variants_is_as_the_registry_has_it():
    page = runpy.run_path(str(ROOT / "docs" / "variants.py"))["page"]
    text = (ROOT / "docs" / "variants.md").read_text()
    assert page(text) == text, "python docs/variants.py writes it anew"
    with pytest.raises(ValueError, match=r"no section with .* of primal-fused"):
        page(text.replace("registry: primal-fused", "registry: dual"))
