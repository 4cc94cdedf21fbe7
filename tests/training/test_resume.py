"""A run that is killed without warning goes on to bitwise the same end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sned.errors import CheckpointError
from sned.surgery.masks import hold_masks
from sned.training import GradualMasks
from sned.training.checkpoint import check_same, identity, load_run
from tests.training.killable import train
from tests.training.networks import digit_net, same

pytest.importorskip("accelerate")

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8 * 28
"""Of the run, or a few less."""


def killed(folder: Path, kind: str, least: int) -> int:
    """Start the run in a process of its own, and kill it once `least` steps are kept; returns the steps kept."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, "-m", "tests.training.killable", str(folder), kind]
    process = subprocess.Popen(words, cwd=ROOT, env=environment)
    try:
        for _ in range(12000):
            assert process.poll() is None, "the run ended before it was killed"
            data = load_run(folder)
            if data is not None and data["position"]["step"] >= least:
                break
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait(30) == -9
    data = load_run(folder)
    assert data is not None
    return int(data["position"]["step"])


@pytest.mark.parametrize("kind", ["tensors", "loader", "taught"])
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path, kind: str) -> None:
    assert 30 <= killed(tmp_path, kind, 30) < STEPS
    rest, whole = train(tmp_path, kind), train(None, kind)
    assert same(rest.model, whole.model)
    assert [(e.loss, e.metric) for e in rest.history] == [(e.loss, e.metric) for e in whole.history]
    again = train(tmp_path, kind)
    assert same(again.model, whole.model)
    assert again.note.startswith("Trained for 8 of 8 epochs")


def test_networks_with_other_zeros_are_told_apart() -> None:
    """Else a run of one would go on as the other's, under the wrong masks."""
    half, most, none = (digit_net() for _ in range(3))
    hold_masks(half, GradualMasks(0.5).masks(half, 0.5))
    hold_masks(most, GradualMasks(0.9).masks(most, 0.9))
    told = [identity(model) for model in (half, most, none, digit_net())]
    assert told[0] != told[1] != told[2] == told[3]
    assert told[0] != told[2]
    with pytest.raises(CheckpointError, match="its network has its zeros in other places"):
        check_same({"network": told[0]}, {"network": told[1]}, Path("checkpoint.pt"))
