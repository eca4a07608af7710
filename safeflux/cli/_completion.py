"""Types of arguments that a shell completes: names of policies and categories. The bundled ones are read only then."""

from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    _Text = click.ParamType[str]
else:
    _Text = click.ParamType  # older releases of click take no type argument here


class PolicyName(_Text):
    """A bundled policy's name, or the path of a YAML file."""

    name = "policy"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Bundled names and YAML files; where neither fits, whatever files the shell finds."""
        from safeflux.policy.load import bundled_policies

        found = [*_starting(bundled_policies(), incomplete), *_policy_files(incomplete)]
        return [CompletionItem(each) for each in found] or [CompletionItem(incomplete, type="file")]


class CategoryName(_Text):
    """A category; several with commas between them where the option takes that."""

    name = "category"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The categories of the bundled policies; of a list, those that are not in it yet."""
        from safeflux.policy.starter import known_categories

        before, comma, last = incomplete.rpartition(",")
        rest = [name for name in known_categories() if name not in before.split(",")]
        return [CompletionItem(f"{before}{comma}{name}") for name in _starting(rest, last)]


POLICY, CATEGORY = PolicyName(), CategoryName()


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _policy_files(incomplete: str) -> Iterator[str]:
    """YAML files, and folders to look into."""
    for path in sorted(glob(f"{escape(incomplete)}*")):
        if Path(path).is_dir():
            yield f"{path}/"
        elif path.endswith((".yaml", ".yml")):
            yield path
