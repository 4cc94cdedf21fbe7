import os
import threading
import time
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sned import runtime
from sned.errors import MeasureError, NotFoundError
from sned.runtime import away_from_workers, open_session, session_options


def doubling_model() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubling", [x], [y])
    opsets = [helper.make_opsetid("", 20)]
    return onnx.ModelProto.SerializeToString(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def test_options_hold_what_makes_two_sessions_comparable() -> None:
    options = session_options(3)
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize(
    ("release", "threads", "wait", "stop"),
    [
        ("1.31.0", 2, "50", None),
        ("1.26.0", 4, "50", None),
        ("1.25.1", 2, None, "1"),
        ("1.31.0", 1, None, "1"),
    ],
)
def test_threads_stay_awake_where_the_runtime_can_say_for_how_long(
    monkeypatch: pytest.MonkeyPatch, release: str, threads: int, wait: str | None, stop: str | None
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", release)
    options = session_options(threads, awake=True)
    for entry, value in (("session.intra_op.spin_duration_us", wait), ("session.force_spinning_stop", stop)):
        if value is None:
            with pytest.raises(RuntimeError, match="does not have"):
                options.get_session_config_entry(entry)
        else:
            assert options.get_session_config_entry(entry) == value


@pytest.mark.parametrize(
    ("processors", "siblings", "threads", "pinned"),
    [
        ({0, 1}, {}, 2, "2"),
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 2, "3"),
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 4, "3;2;4"),
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 3, "2;3"),
        ({5, 9}, {}, 2, "10"),
        ({0, 1}, {}, 1, None),
        ({0, 1}, {}, 3, None),
    ],
)
def test_each_thread_beside_the_calling_one_is_pinned_to_a_core_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processors: set[int], siblings: dict[int, str], threads: int,
    pinned: str | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors, raising=False)
    monkeypatch.setattr(runtime, "CORES", tmp_path)
    for processor, held in siblings.items():
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(held)
    entry = "session.intra_op_thread_affinities"
    options = session_options(threads)
    if pinned is None:
        with pytest.raises(RuntimeError, match="does not have"):
            options.get_session_config_entry(entry)
    else:
        assert options.get_session_config_entry(entry) == pinned


def own_threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").glob("*")]


def first_pinned(but: Set[int], *, within_s: float = 30) -> set[int]:
    """Where the first thread lies that may use one processor: a thread pins itself as it starts, on a busy
    machine long after the session is open."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for thread in set(own_threads()) - but:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                if len(may_use := os.sched_getaffinity(thread)) == 1:
                    return may_use
        time.sleep(0.01)
    raise AssertionError(f"no thread was pinned within {within_s} s")


def threads_can_be_pinned() -> bool:
    """Whether the system lets a thread be pinned and tells where it lies: some sandboxes do neither."""
    if not hasattr(os, "sched_getaffinity") or len(processors := os.sched_getaffinity(0)) < 2:
        return False
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_native_id).result()
        with suppress(OSError):
            pool.submit(os.sched_setaffinity, 0, {max(processors)}).result()
        return thread in own_threads() and os.sched_getaffinity(thread) == {max(processors)}


@pytest.mark.skipif(not threads_can_be_pinned(), reason="threads cannot be pinned here, or are not told of")
def test_threads_lie_where_they_were_pinned_and_the_calling_one_moves_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processors = os.sched_getaffinity(0)
    before = set(own_threads())
    session = open_session(doubling_model(), threads=2)
    [y] = session.run(None, {"x": np.ones((1, 2), np.float32)})
    assert y.tolist() == [[2, 2]]
    pinned = first_pinned(before)
    moved: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, to: moved.append(to))
    away_from_workers(2)()
    away_from_workers(1)()
    assert moved == [processors - pinned, processors]


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(MeasureError, match="`threads` must be at least 1, got 0"):
        session_options(0)


def test_a_model_in_memory_and_one_in_a_file_run_alike(tmp_path: Path) -> None:
    path = tmp_path / "doubling.onnx"
    path.write_bytes(doubling_model())
    x = np.array([[1.5, -2.0]], np.float32)
    for source in (doubling_model(), path, str(path)):
        [y] = open_session(source).run(None, {"x": x})
        np.testing.assert_array_equal(y, 2 * x)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"There is no file '.*absent\.onnx'"):
        open_session(tmp_path / "absent.onnx")


def test_a_file_that_is_not_onnx_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(
        MeasureError, match=r"cannot run '.*garbage\.onnx'.*Check that the file is a whole ONNX"
    ):
        open_session(path)
