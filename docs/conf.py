"""The documentation site: `make docs` builds it into build/docs, and any warning is an error."""

import re

from sphinx.application import Sphinx

import safeflux

project = "safeflux"
copyright = "the safeflux authors"
version = release = safeflux.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False

BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "safeflux/reference/CARD.md": "emoji-flux.md",
}
"""Pages of the repository that lie beside docs/, and the pages of the site that include them."""

html_theme = "furo"
html_title = f"safeflux {version}"
html_copy_source = False


def _as_restructured_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings have code as Markdown has it: in single backticks, and indented after an empty line."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]
    for k in range(len(lines) - 1, 0, -1):
        starts_code = not lines[k - 1].strip() and re.match(r" {4,}\S", lines[k])
        above = next((line for line in reversed(lines[:k]) if line.strip()), "")
        if starts_code and not above.startswith(" "):
            lines[k:k] = ["::", ""]
    if what in ("attribute", "property"):  # an empty comment, or napoleon takes what is before a colon for a type
        lines[:0] = ["..", ""]


def _link_to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """What lies beside docs/ in the repository is a page of its own on the site."""
    for path, own in BESIDE.items():
        source[0] = source[0].replace(f"](../{path}", f"]({own}")


def setup(app: Sphinx) -> None:
    """Run before napoleon, which sees the docstring as it was written."""
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
