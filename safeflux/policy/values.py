"""Single values in YAML, as options of the command line take them."""

from typing import Any

import yaml

from safeflux.errors import ConfigError


def read_value(text: str, where: str) -> Any:
    """The value that a text stands for: `20`, `true`, `[a, b]`; any other text is itself.

    Args:
        text: What was given.
        where: The option, for errors.

    Raises:
        ConfigError: It is not YAML, such as a bracket that nothing closes.

    Examples:
        >>> read_value("20", "--set batch"), read_value("[ff, mlp]", "--set kinds")
        (20, ['ff', 'mlp'])
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or error
        raise ConfigError(
            f"{where}: expected a value as in YAML (20, true, text, [a, b]), got {text!r} ({why})"
        ) from error
