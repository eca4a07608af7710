"""Types of arguments that a shell completes: policies, categories and masks. The bundled ones are read only then."""

from collections.abc import Iterable, Iterator
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    _Text = click.ParamType[str]
    _PathType = click.ParamType[Path]
else:
    _Text = _PathType = click.ParamType  # older releases of click take no type argument here


class PolicyName(_Text):
    """A bundled policy's name, or the path of a YAML file."""

    name = "policy"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Bundled names and YAML files; where neither fits, whatever files the shell finds."""
        from safeflux.policy.load import bundled_policies

        found = [*_starting(bundled_policies(), incomplete), *_files(incomplete, (".yaml", ".yml"))]
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


class MaskFile(_PathType):
    """The path of a mask file, or the name of a bundled mask."""

    name = "mask"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file; a name that is neither a file nor a bundled mask is an error with a suggestion."""
        path = Path(value)
        if path.exists() or len(path.parts) > 1 or path.suffix:
            return path
        from safeflux.errors import StoreError
        from safeflux.masks.store import open_store

        bundled = open_store()
        found = [file for file, _ in bundled.metas(path.name)] if path.name in bundled.names() else []
        if not found:
            raise StoreError(f"{path}: is no file, and no bundled mask has this name; {bundled.suggest(path.name)}")
        if len(found) > 1:
            raise StoreError(f"{path}: several bundled masks have this name: {', '.join(map(str, found))}; name a file")
        return found[0]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Bundled names, mask files and folders; if neither fits, whatever files the shell finds."""
        from safeflux.masks.store import open_store

        found = [*_starting(open_store().names(), incomplete), *_files(incomplete, (".safetensors",))]
        return [CompletionItem(each) for each in found] or [CompletionItem(incomplete, type="file")]


POLICY, CATEGORY, MASK = PolicyName(), CategoryName(), MaskFile()


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Files of some sorts, and folders to look into."""
    for path in sorted(glob(f"{escape(incomplete)}*")):
        if Path(path).is_dir():
            yield f"{path}/"
        elif path.endswith(endings):
            yield path
