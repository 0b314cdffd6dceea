"""Text in pictures as people have written it: no mathematics, no label that is skipped, no script without a font."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.legend import Legend
from matplotlib.text import Text

from mmdma_core.files.atomic import atomically

# For text that is created, and for ticks, which are created when a figure is saved.
AS_IT_STANDS = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}
_LOG = logging.getLogger("mmdma_core")
_MOST = 60  # characters of one text
_NO_LETTERS = ("Last Resort", "cm", "STIXNonUnicode", "STIXSize")  # fonts of boxes, or with characters out of place


@contextmanager
def as_it_stands() -> Iterator[None]:
    """While figures are made and measured: text is no mathematics, and a missing glyph is no warning."""
    with matplotlib.rc_context(AS_IT_STANDS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


def shortened(text: str, most: int = _MOST) -> str:
    """The text on one line, without its middle where it is longer than `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}\u2026{text[len(text) - (most - 1) // 2 :]}"


def legend(
    parent: Axes | Figure, handles: Sequence[Artist], labels: Iterable[str] | None = None, **place: object
) -> Legend:
    """A legend with every label, be it one that begins with '_', which Matplotlib takes as a sign to skip it.

    labels  by default those of the handles
    """
    labels = [str(handle.get_label()) for handle in handles] if labels is None else list(labels)
    made = parent.legend(handles, [f"{k}" for k in range(len(handles))], **place)
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set_text(label)
        text.set_parse_math(False)
        _complete(text)
    return made


def save(figure: Figure, path: Path, **options: object) -> None:
    """Write a figure in one step. What the font lacks comes from others; what none has is told in one line."""
    with as_it_stands():
        for axes in figure.axes:  # ticks have their text when they are asked for
            axes.get_xticklabels(), axes.get_yticklabels()
        for text in figure.findobj(Text):
            _complete(text)
        with atomically(path) as part:
            figure.savefig(part, **options)


def _complete(text: Text) -> None:
    """Have a text take what its font lacks from others."""
    families = text.get_fontfamily()
    others = _others(frozenset(text.get_text()), families[0]) if text.get_text() else ()
    if others and len(families) == 1:
        text.set_fontfamily([*families, *others])


@cache
def _others(characters: frozenset[str], family: str) -> tuple[str, ...]:
    """Families that have what the font of a family lacks."""
    own = findfont(FontProperties(family=[family]))
    lacking = {character for character in characters if character.isprintable()} - _characters(own)
    found = []
    for name, file in _families().items() if lacking else ():
        held = lacking & _characters(file)
        if held and _can_draw(file, held):
            found.append(name)
            lacking -= held
    if lacking:
        _LOG.warning("no font that is installed has %s: boxes stand in their place", " ".join(sorted(lacking)))
    return tuple(found)


@cache
def _families() -> dict[str, str]:
    """Family -> file of its plainest face; those without serifs first."""
    entries = [entry for entry in fontManager.ttflist if not entry.name.startswith(_NO_LETTERS)]
    entries.sort(key=lambda entry: ("Sans" not in entry.name, entry.name, entry.style != "normal", entry.weight != 400))
    found: dict[str, str] = {}
    for entry in entries:
        found.setdefault(entry.name, entry.fname)
    return found


@cache
def _characters(file: str) -> frozenset[str]:
    with suppress(RuntimeError, OSError):  # one that FreeType cannot read
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    return frozenset()


def _can_draw(file: str, characters: Iterable[str]) -> bool:
    """Whether the glyphs have outlines: some fonts of pictures have bitmaps of one size alone."""
    try:
        font = FT2Font(file)
        font.set_size(8, 72)
        for character in characters:
            font.load_char(ord(character))
    except RuntimeError:
        return False
    return True
