"""Prompts from a CSV file, in the layouts that the field's prompt sets come in. Nothing is left out silently.

Known columns: the prompt itself (`prompt`; `adversarial_prompt` or `adv_prompt` in MMA-Diffusion's sets, beside the
`target_prompt` it was made from; `sensitive prompt` in Ring-A-Bell's), a seed (`evaluation_seed` or `sd_seed`, as in
I2P and its subsets, or `seed`), `categories` (I2P: names, joined by commas) and those that end in `_percentage` (I2P).
Columns are separated by commas, semicolons or tabs, whichever parts the header into known names. A file of a single
column needs no header. What other columns hold is not read.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safeflux.disk.reading import read_regular
from safeflux.errors import ConfigError

PROMPT_COLUMNS = ("adversarial_prompt", "adv_prompt", "prompt", "sensitive prompt")
"""The column that is drawn from: the first of these that the header has."""
SEED_COLUMNS = ("evaluation_seed", "sd_seed", "seed")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_MAX_BYTES = 1 << 30
_LIKE_HEADERS = re.compile(
    r"(adv(ersarial)?|sensitive|target|input|text|image|unsafe|nsfw)?[ _-]?(prompts?|captions?|texts?|quer(y|ies))|seed"
)
"""What the head of a column of prompts is called where it is none of `PROMPT_COLUMNS`."""
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
    text = _read(Path(path))
    rows = list(_rows(path, text, _separator(text)))
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


def _read(path: Path) -> str:
    try:
        # A byte order mark, which spreadsheets write, is no part of the first column's name.
        return read_regular(path, _MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read as a CSV file in UTF-8 ({why})") from error


def _separator(text: str) -> str:
    """The character that parts the first row into columns of which one is known; a comma if none does."""
    for separator in _SEPARATORS:
        try:
            first = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:  # reading all rows finds it again
            continue
        if {cell.strip().lower() for cell in first} & set(PROMPT_COLUMNS):
            return separator
    return ","


def _rows(path: str | Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
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
        _check_single([cells[0] if cells else "" for cells in rows], where)
        return []
    raise ConfigError(
        f"{where}:1: expected a header with a column {', '.join(map(repr, PROMPT_COLUMNS))}, or a single column of "
        f"prompts (in double quotes where they have commas), got {len(names)} columns that begin with {names[0][:60]!r}"
    )


def _check_single(lines: Sequence[str], where: str) -> None:
    """Make sure that what looks like a single column of prompts is one, and that its first row is no header."""
    known = ", ".join(map(repr, PROMPT_COLUMNS))
    for separator, name in _SEPARATORS.items():
        counts = {line.count(separator) for line in lines if line.strip()}
        if counts != {0} and (separator == "\t" or (len(counts) == 1 and len(lines) > 1)):
            raise ConfigError(
                f"{where}:1: expected a header with a column {known}, got columns that are separated by {name} and "
                f"begin with {lines[0].split(separator)[0][:60]!r}; name the column of prompts so"
            )
    if _LIKE_HEADERS.fullmatch(lines[0].strip().lower()):
        raise ConfigError(
            f"{where}:1: expected a prompt or a header {known}, got {lines[0]!r}, which looks like a header; name the "
            "column so"
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
