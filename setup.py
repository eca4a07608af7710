"""The long description of the package: README.md, with links that work outside of a checkout.

A relative link leads to the file under the address `Source` of `[project.urls]` in pyproject.toml. Without that
address a link becomes its text, and a picture is left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)]\((?!https?:|#)(?P<target>[^)]*)\)")


def long_description(readme: str, source: str | None) -> str:
    """The text of a README with no relative link in it.

    Args:
        readme: In Markdown.
        source: Address of the repository, e.g. `https://host/owner/name`, or None.
    """

    def resolved(link: re.Match[str]) -> str:
        picture, text, target = link.group("picture", "text", "target")
        if source:
            return f"{picture}[{text}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{target})"
        return "" if picture else text

    return _LINK.sub(resolved, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=long_description(
            (ROOT / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Source")
        ),
        long_description_content_type="text/markdown",
    )
