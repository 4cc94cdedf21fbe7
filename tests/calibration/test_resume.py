"""Runs that are killed go on from where they were, and end as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sned.calibration import Resume, calibrate
from sned.calibration import resume as module
from sned.calibration.resume import digest
from sned.errors import WriteError
from tests.calibration.killed import Found, Killer, batches, learn, network

ROOT = Path(__file__).parents[2]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is kept as soon as it is there."""
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "SHARE", 0)


def killed(folder: Path, task: str, after: int) -> int:
    """Run all stages in a process of their own, which kills itself in the middle of a task."""
    words = [sys.executable, "-m", "tests.calibration.killed", str(folder), task, str(after)]
    return subprocess.run(words, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


def same(one: Found, other: Found) -> None:
    assert one.told == other.told
    assert one.state.keys() == other.state.keys()
    for name, tensor in one.state.items():
        assert torch.equal(tensor, other.state[name]), name


def test_a_run_killed_at_every_stage_ends_as_one_that_was_not(tmp_path: Path, eager: None) -> None:
    whole = learn(Resume())
    for task, after in (("calibrating", 2), ("sensitivities", 4), ("repairing layers", 2)):
        assert killed(tmp_path, task, after) == -9
    resume = Resume(tmp_path)
    same(learn(resume), whole)
    assert resume.told == ["calibration (all 96)", "error curves (all 3)", "sensitivities (all 3)",
                           "repair of layers (3 of 5)"]  # fmt: skip
    assert resume.note.startswith("Resumed what an interrupted run had done: calibration (all 96), error")
    resume.clear()
    assert not tmp_path.exists()


class Stop(Exception):
    """Thrown in the middle of a task."""


@pytest.mark.parametrize(
    ("task", "after", "told"),
    [
        ("calibrating", 2, "calibration (72 of 96)"),
        ("error curves", 1, "error curves (2 of 3)"),
        ("sensitivities", 4, "sensitivities (1 of 3)"),
        ("repairing layers", 3, "repair of layers (4 of 5)"),
    ],
)
def test_what_an_interrupted_stage_had_done_is_taken_over(
    tmp_path: Path, eager: None, task: str, after: int, told: str
) -> None:
    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        learn(Resume(tmp_path), Killer(task, after, stop))
    resume = Resume(tmp_path)
    same(learn(resume), learn(Resume()))
    assert told in resume.told


def test_the_same_inputs_with_others_to_learn_from_begin_anew(tmp_path: Path, eager: None) -> None:
    graph, state = network()
    calibrate(graph, state, batches(), limit=64, further=32, resume=Resume(tmp_path))
    resume = Resume(tmp_path)
    found = calibrate(graph, state, batches(), limit=96, resume=resume)
    assert not resume.told
    fresh = calibrate(graph, state, batches(), limit=96)
    for op, moment in fresh.moments.items():
        assert found.moments[op].count == moment.count


def test_other_weights_or_inputs_start_over(tmp_path: Path, eager: None) -> None:
    graph, state = network()
    calibrate(graph, state, batches(), limit=96, resume=Resume(tmp_path))
    changed = {name: t * 1.5 if name == "head.weight" else t for name, t in state.items()}
    for new, given in ((changed, batches()), (state, [b + 1 for b in batches()]), (state, batches()[:1])):
        resume = Resume(tmp_path)
        calibrate(graph, new, given, limit=96, resume=resume)
        assert resume.told == []
    resume = Resume(tmp_path)
    calibrate(graph, state, batches(), limit=96, resume=resume)
    assert resume.told == ["calibration (all 96)"]


def test_answers_too_many_to_keep_are_given_again(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sned.calibration.store.IN_MEMORY", 100)
    graph, state = network()
    first = calibrate(graph, state, batches(), limit=96, resume=Resume(tmp_path))
    second = calibrate(graph, state, batches(), limit=96, resume=Resume(tmp_path))
    assert torch.equal(first.outputs()[0], second.outputs()[0])
    for op, moment in first.moments.items():
        assert torch.equal(moment.second, second.moments[op].second)
        assert moment.count == second.moments[op].count


def test_a_damaged_file_counts_as_none(tmp_path: Path, eager: None) -> None:
    slot = Resume(tmp_path).slot("stage", 1)
    slot.offer(lambda: {"x": torch.ones(3)})
    [file] = tmp_path.iterdir()
    assert torch.equal(Resume(tmp_path).slot("stage", 1).found["x"], torch.ones(3))
    for damage in (b"", b"nonsense", file.read_bytes()[:200]):
        file.write_bytes(damage)
        assert Resume(tmp_path).slot("stage", 1).found == {}


def test_short_stages_and_runs_without_a_folder_keep_nothing(tmp_path: Path) -> None:
    learn(Resume(tmp_path / "resume"))
    assert not (tmp_path / "resume").exists()
    slot = Resume().slot("stage")
    slot.close(lambda: pytest.fail("nothing is worked out in vain"))


def test_saves_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    slot, saves = Resume(tmp_path).slot("stage"), []

    def slow() -> dict[str, torch.Tensor]:
        saves.append(now[0])
        now[0] += 1.0
        return {}

    while now[0] < 100:
        slot.offer(slow)
        now[0] += 0.5
    assert 4 <= len(saves) <= 6, "one of a second in every 21"


def test_a_full_disk_does_not_stop_the_run(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr("sned.calibration.resume.atomic_path", full)
    assert learn(Resume(tmp_path)).told == learn(Resume()).told


def test_digests_tell_values_apart() -> None:
    values = [
        (1, 2), ((1, 2),), ("1", 2), (1, 2, None), (torch.ones(2),), (torch.ones(2, dtype=torch.float64),),
        (torch.ones(1, 2),), (np.ones(2),), ({"a": 1},), ({"a": 2},), ({"b": 1},), ("ab", "c"), ("a", "bc"),
    ]  # fmt: skip
    assert len({digest(*value) for value in values}) == len(values)
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(torch.arange(6).reshape(2, 3).T.contiguous())
