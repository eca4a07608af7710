"""The sites that each category's mask may touch, by the patterns of the configuration."""

import fnmatch
from collections.abc import Mapping, Sequence

from safeflux.trainer.asked.config import TrainConfig

from safeflux.errors import ConfigError
from safeflux.families.sites import Site


def choose_sites(config: TrainConfig, sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Category -> names of the sites that its mask may touch.

    Raises:
        ConfigError: A pattern matches no site, or a category is left without one.
    """
    of_kinds = [name for name, site in sites.items() if site.kind in config.kinds]
    of_run = _matches("sites", config.sites, of_kinds, f"of the kinds {', '.join(config.kinds)}")
    chosen = {}
    for category, asked in config.categories.items():
        key = f"categories.{category}.sites"
        of_category = _matches(key, asked.sites, list(sites), "of the model")
        chosen[category] = [name for name in of_run if name in of_category]
        if not chosen[category]:
            raise ConfigError(f"{key}: none of these sites is among the run's, which are {_some(of_run)}")
    return chosen


def _matches(key: str, patterns: Sequence[str], names: Sequence[str], which: str) -> list[str]:
    """The names that match a pattern, in their order."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"{key}: {pattern!r} matches none of the {len(names)} sites {which}; they have names such as "
                f"{_some(names)}"
            )
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3])
