"""What is heard of a child."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from sned.surgery.keras.client import Child


def test_the_last_words_of_a_child_are_not_those_of_its_libraries() -> None:
    child = Child("torch")
    child._process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], text=True)
    child._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the child)
    child._said.write(
        b"MemoryError: no room\n\n"
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795978132.9 8007 port.cc:153] oneDNN custom operations are on.\n"
        b"2026-01-01 12:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN\n"
    )
    told = child._last_words()
    assert "ended with code 3. It said last: MemoryError: no room The model" in told
