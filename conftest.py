"""Lets `python -m pytest` find the mapped packages in a checkout that is not installed."""

from importlib.util import find_spec
from pathlib import Path

import safeflux

if find_spec("safeflux.trainer") is None:
    safeflux.__path__.append(str(Path(__file__).parent))
