"""Whether C++ can be compiled here, for tests of what needs it."""

import os
import shutil
import sysconfig
from pathlib import Path

COMPILER = os.environ.get("CXX", "g++")
HAS_COMPILER = (
    shutil.which(COMPILER) is not None
    and Path(sysconfig.get_path("include"), "Python.h").exists()  # generated code includes it
)
