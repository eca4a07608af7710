"""Prompts from a CSV file, in the layouts that the field's prompt sets come in. Nothing is left out silently.

Known columns: the prompt itself (`prompt`; `adversarial_prompt` or `adv_prompt` in MMA-Diffusion's sets, beside the
`target_prompt` it was made from; `sensitive prompt` in Ring-A-Bell's), a seed (`evaluation_seed` or `sd_seed`, as in
I2P and its subsets), `categories` (I2P: names, joined by commas) and those that end in `_percentage` (I2P). A file of
a single column needs no header. What other columns hold is not read.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safeflux.errors import ConfigError

PROMPT_COLUMNS = ("adversarial_prompt", "adv_prompt", "prompt", "sensitive prompt")
"""The column that is drawn from: the first of these that the header has."""
SEED_COLUMNS = ("evaluation_seed", "sd_seed")
_PERCENTAGE = "_percentage"


@dataclass(frozen=True)
class Prompt:
    """One row.

    Attributes:
        text: The prompt.
        line: Where the row begins in the file, from 1.
        seed: Of the noise, if the file gives one.
        categories: What the file says the prompt is about.
        percentages: Column -> value, 0 to 100, of the columns that end in `_percentage`.
    """

    text: str
    line: int
    seed: int | None = None
    categories: tuple[str, ...] = ()
    percentages: Mapping[str, float] = field(default_factory=dict)


def load_prompts(path: str | Path) -> tuple[Prompt, ...]:
    """Read a CSV file of prompts, in UTF-8.

    Raises:
        ConfigError: The file cannot be read, has no column of prompts, or has bad rows: one line for each of them,
            with its number in the file, what was expected and what was got.
    """
    rows = list(_rows(Path(path)))
    if not rows:
        raise ConfigError(f"{path}: expected prompts, got an empty file")
    header = _header([cells for _, cells in rows], str(path))
    if header:
        rows = rows[1:]
    columns = header or ["prompt"]
    prompts, errors = [], []
    for line, cells in rows:
        try:
            prompts.append(_prompt(columns, cells, line))
        except ValueError as error:
            errors.append(f"{path}:{line}: {error}")
    if errors:
        raise ConfigError("\n".join(errors))
    if not prompts:
        raise ConfigError(f"{path}: expected prompts, got a header only")
    return tuple(prompts)


def at_least(prompts: Sequence[Prompt], least: Mapping[str, float]) -> tuple[Prompt, ...]:
    """The prompts whose percentages all reach the given ones, e.g. I2P's with `nudity_percentage` of 50 or more.

    Raises:
        ConfigError: The file has no such column, or no prompt is left.
    """
    for name in least:
        if any(name not in prompt.percentages for prompt in prompts):
            known = ", ".join(prompts[0].percentages) or "none"
            raise ConfigError(f"{name!r}: expected a column of the prompts' file that ends in _percentage, of: {known}")
    chosen = tuple(p for p in prompts if all(p.percentages[name] >= value for name, value in least.items()))
    if not chosen:
        asked = ", ".join(f"{name} {value:g}" for name, value in least.items())
        raise ConfigError(f"none of {len(prompts)} prompts has at least {asked}; ask for less")
    return chosen


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line that it begins on."""
    try:
        # A byte order mark, which spreadsheets write, is no part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            line = 1
            for cells in reader:
                yield line, cells
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}: expected CSV, got a row that is none ({error})") from error


def _header(rows: Sequence[Sequence[str]], where: str) -> list[str]:
    """The column names; none for a single column whose first row is a prompt already."""
    names = [cell.strip().lower() for cell in rows[0]]
    if set(names) & set(PROMPT_COLUMNS):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{where}:1: expected each column once, got {', '.join(map(repr, twice))} twice")
        return names
    if all(len(cells) <= 1 for cells in rows):
        return []
    raise ConfigError(
        f"{where}:1: expected a header with a column {', '.join(map(repr, PROMPT_COLUMNS))}, or a single column of "
        f"prompts (in double quotes where they have commas), got {len(names)} columns that begin with {names[0][:60]!r}"
    )


def _prompt(columns: Sequence[str], cells: Sequence[str], line: int) -> Prompt:
    """Make one row's prompt; ValueError says what is wrong with it."""
    if len(cells) != len(columns):
        raise ValueError(f"expected {len(columns)} columns ({', '.join(columns)}), got {len(cells)}")
    row = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
    column = next(name for name in PROMPT_COLUMNS if name in row)
    if not row[column]:
        raise ValueError(f"{column}: expected a prompt, got nothing")
    seeds = [_seed(name, row[name]) for name in SEED_COLUMNS if name in row]
    names = tuple(dict.fromkeys(name.strip() for name in row.get("categories", "").split(",") if name.strip()))
    percentages = {name: _percentage(name, text) for name, text in row.items() if name.endswith(_PERCENTAGE)}
    return Prompt(row[column], line, seeds[0] if seeds else None, names, percentages)


def _seed(name: str, text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**63):
        raise ValueError(f"{name}: expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def _percentage(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ValueError(f"{name}: expected a number from 0 to 100, got {text!r}")
    return value
