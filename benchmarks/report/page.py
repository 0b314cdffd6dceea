"""The page: sections, tables and charts as HTML in one file that asks no network for anything; numbers in words."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from benchmarks.plan import runs
from benchmarks.study import Study


def number(value: float | None) -> str:
    """Return three digits: 0.0123, 4.57, 1,230; '' for None and for what is no number."""
    if value is None or math.isnan(value):
        return ""
    if isinstance(value, int) or abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float, digits: int = 0) -> str:
    """Return '7 %'; '' for what is no number."""
    return "" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def listing(words: Sequence[str], most: int | None = None) -> str:
    """Return 'a, b and c'; beyond `most` words 'a, b and 3 more'."""
    words = list(words)
    if most is not None and len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def spans(values: Iterable[int], grid: Sequence[int]) -> str:
    """Return values of a grid, with neighbours in one: '10 to 1,000 and 5,000'."""
    return listing([f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in runs(set(values), grid)])


def at(values: Iterable[int], grid: Sequence[int], name: str) -> str:
    """Return 'p = 10 to 100', or 'every p' where all of the grid is meant."""
    values = set(values)
    return f"every {name}" if values == set(grid) and len(values) > 1 else f"{name} = {spans(values, grid)}"


def grouped(values: Mapping[Hashable, Hashable]) -> dict[Hashable, list]:
    """Return value -> the keys that have it, both in order of appearance."""
    groups: dict[Hashable, list] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    return groups


_TEMPLATES = Path(__file__).with_name("templates")
_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv", "parquet": "application/octet-stream"}
_LEAST_SCALE = 0.64  # a chart is drawn no smaller than that, and scrolls in its box where there is no room


class Section(NamedTuple):
    """A part of the page: a title, and HTML that is safe to put in as it is."""

    title: str
    html: Markup


def anchor(title: str) -> str:
    """Return the address that the section of this title has within the page."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def render(study: Study, sections: Sequence[Section], notes: Sequence[str]) -> str:
    """Return the whole page. `notes` are sentences about what was left out; they stand above everything else."""
    names = ("page.css", "chart.js", "table.js")
    css, *scripts = (Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in names)
    page = _environment().get_template("page.html.j2")
    return page.render(study=study, sections=sections, notes=notes, css=css, scripts=scripts)


def part(name: str, **values: object) -> Markup:
    """Return the macro `name` of parts.html.j2, filled in."""
    return getattr(_environment().get_template("parts.html.j2").module, name)(**values)


def table(
    caption: str, headings: Sequence[str], rows: Iterable[Sequence], numeric: Sequence[int] = (), **more: object
) -> Markup:
    """Return a table in a box of its own that scrolls; the first value of each row is its heading.

    Values are text, escaped here, or Markup. numeric: the columns to align right.
    more: `id`, `css` (classes of the box: 'tall' limits its height, 'screen' keeps it off paper).
    """
    return part("table", caption=caption, headings=headings, rows=list(rows), numeric=numeric, **more)


def figure(root: Path, name: str, caption: str, alt: str, folder: str = "figures") -> Markup:
    """Return a figure of results/MACHINE/figures for the page, with itself as PNG and SVG to take along.

    alt says what it shows to one who cannot see it. A figure that is not there is named in a sentence.
    """
    files = {suffix: root / folder / f"{name}.{suffix}" for suffix in ("png", "svg")}
    if not all(file.exists() for file in files.values()):
        absent = next(file for file in files.values() if not file.exists())
        return paragraph(f"`{absent}` is not there, so {name} is left out: `python -m benchmarks figures` draws it.")
    links = [download(f"{name}.{suffix}", file.read_bytes()) for suffix, file in files.items()]
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', files["svg"].read_text(encoding="utf-8"))
    least = round(float(width[1]) * 4 / 3 * _LEAST_SCALE) if width else 0
    return part("figure", source=links[1].uri, caption=caption, alt=alt, least=least, links=links)


class Download(NamedTuple):
    """A file inside the page."""

    name: str
    uri: str
    kind: str
    kilobytes: int


def download(name: str, content: bytes) -> Download:
    """Return the file as a data URI."""
    kind = name.rsplit(".", 1)[1]
    uri = f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode()}"
    return Download(name, uri, {"csv": "CSV", "parquet": "Parquet"}.get(kind, kind.upper()), -(-len(content) // 1000))


def paragraph(*sentences: str, css: str = "") -> Markup:
    """Return sentences, in which `...` marks code."""
    return part("paragraph", text=" ".join(sentences), css=css)


def code(text: str) -> Markup:
    """Return text, escaped, with `...` set as code and **...** set strong; n = 1,000 and 7 % stay on one line."""
    text = re.sub(r"\b([np]) = (?=\d)", "\\1\u00a0=\u00a0", text).replace(" %", "\u00a0%")
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": code, "anchor": anchor, "plain": lambda text: re.sub(r"[`*]", "", text)}
    return environment
