"""Each example runs to its end, as a reader would start it: from an empty folder, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    if script.stem == "keras_model":
        pytest.importorskip("keras")
    told = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=told, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
