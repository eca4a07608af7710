"""Pages from templates: one HTML text that refers to nothing outside itself and runs no script.

A package that makes pages has its words and markup in its own `templates/`, and extends `base.html` here. Templates are
filled with text and numbers, all of it escaped.
"""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, template: str, **values: Any) -> str:
    """A page from a template of a package.

    Args:
        package: The package that has the template, e.g. `safeflux.demo`.
        template: The name of its file.
        values: What it is filled with; a name that is missing is an error.
    """
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("safeflux.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(**values)
