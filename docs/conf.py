"""Sphinx: the pages of this folder, and the API from the docstrings. `make docs` builds them."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

project = "LSMMD-MA, the scaling study"
copyright = "the authors, Apache License 2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
numpydoc_show_class_members = False
html_theme = "alabaster"


def escape(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are written to be read in the code: what |x|, a* and x_ mean to docutils is taken from them."""
    verbatim = None  # the column of the line that began a doctest or a block behind '::'
    for number, line in enumerate(lines):
        column = len(line) - len(line.lstrip())
        if verbatim is not None and line.strip() and column <= verbatim:
            verbatim = None
        if verbatim is None and line.lstrip().startswith(">>>"):
            verbatim = column - 1
        if verbatim is None:
            lines[number] = re.sub(r"[|*]|_(?=\W|$)", r"\\\g<0>", line)
            verbatim = column if line.endswith("::") else None


def setup(app: Sphinx) -> None:
    """Before numpydoc, which reads the sections."""
    app.connect("autodoc-process-docstring", escape, priority=100)
