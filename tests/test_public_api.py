"""The public API: lazy names that are what they say, and all that a newcomer sees of the package."""

import importlib
import rlcompleter

import pytest

import safeflux
from tests.helpers.fresh import modules_after


def test_every_public_name_is_the_one_of_its_module():
    for name in safeflux.__all__:
        module = importlib.import_module(f"safeflux.{safeflux._HOME[name]}")
        assert getattr(safeflux, name) is getattr(module, name)
    assert list(safeflux._HOME) == safeflux.__all__


def test_type_checkers_see_the_same_names():
    source = importlib.util.find_spec("safeflux").loader.get_source("safeflux")
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n__all__")[0]
    space: dict[str, object] = {}
    exec("if True:\n" + block, space)
    assert {name for name in space if not name.startswith("__")} == set(safeflux.__all__)


def test_completion_offers_these_names_and_no_others():
    completer, offered = rlcompleter.Completer({"safeflux": safeflux}), set()
    while found := completer.complete("safeflux.", len(offered)):
        offered.add(found.removeprefix("safeflux.").rstrip("()"))
    assert offered == set(safeflux.__all__)


def test_functions_stay_functions_after_every_module_was_imported():
    modules = {f"safeflux.{home}" for home in safeflux._HOME.values()}
    code = f"import safeflux, {', '.join(sorted(modules))}\nassert callable(safeflux.guard) and callable(safeflux.bake)"
    modules_after(code)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'safeflux' has no attribute 'gaurd'"):
        safeflux.gaurd  # noqa: B018
