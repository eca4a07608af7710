"""Progress on stderr: a named bar with an estimate on a terminal, lines elsewhere."""

import os
import pty
import re
import subprocess
import sys

from safeflux.cli._shared import Bar

DRAWING = """
import time
from safeflux.cli._shared import Bar
with Bar() as bar:
    for done in range(6):
        bar("base model's outputs", done, 20)
        time.sleep(0.3)
    bar("rounds for weapons", 1, 2)
    time.sleep(0.3)
"""


def test_without_a_terminal_there_is_a_line_with_the_time_left(capsys):
    with Bar(seconds_between_lines=0) as bar:
        bar("drawing", 10, 30)
        bar("drawing", 20, 30)
        bar("rounds for weapons", 1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "drawing: 10 of 30, 0:00:00 elapsed",
        "drawing: 20 of 30, 0:00:00 elapsed, about 0:00:00 left",
        "rounds for weapons: 1 of 2, 0:00:00 elapsed",
    ]


def test_without_a_terminal_there_is_no_more_than_a_line_a_minute(capsys):
    with Bar() as bar:
        for done in range(100):
            bar("drawing", done, 100)
        bar.note("round 1: [erase] 0.5")
    assert capsys.readouterr().err == "round 1: [erase] 0.5\n"


def test_on_a_terminal_the_bar_has_a_name_and_the_time_left():
    parent, child = pty.openpty()
    size = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", DRAWING], stderr=child, env=size)
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 65536):
            shown += part
    except OSError:  # Linux says so at the end of a terminal
        pass
    os.close(parent)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"base model's outputs .* 5/20 0:00:01 elapsed, 0:00:0[3-6] left", text)
    assert "rounds for weapons" in text
