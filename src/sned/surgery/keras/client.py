"""Have something done with a model under another backend: that of Keras is fixed for a process, so a child does it."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import keras

import sned.errors
from sned.errors import ModelError, SnedError
from sned.graph.example import Example
from sned.graph.ir import Graph
from sned.surgery.keras.child import ANSWER, JOB, MODEL
from sned.surgery.keras.configuration import own_objects
from sned.surgery.keras.naming import paths_of

TITLES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
"""What backends are called."""

NOISE = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IW] ")
"""Begins what TensorFlow says of itself."""

TAIL = 2000
"""How much of what a dead child printed is read for its last words."""


def recorded_by_child(model: Any, example: Example, *, rehearse: bool) -> Graph:
    """The graph of a model, recorded under the PyTorch backend.

    Raises:
        ModelError: the model cannot be saved or loaded, or does not run; or the child died.
    """
    home = "sned.surgery.keras.recording"
    if not rehearse:
        plain: Graph = asked("torch", f"{home}:recorded_plainly", model, example)
        return plain
    graph: Graph = asked("torch", f"{home}:record", model, example, keras.backend.backend())
    return graph


def asked(backend: str, function: str, model: Any, *arguments: Any) -> Any:
    """What a function of a model returns in the child under a backend, which is started when it is first asked.

    Args:
        backend: a key of `TITLES`.
        function: where it is, `module:name`.
        model: its first argument; the child has a copy.
        arguments: the others; they and what it returns are pickled.

    Raises:
        SnedError: what the function raised.
        ModelError: the model cannot be saved, or loaded by the child; or the child died.
    """
    with tempfile.TemporaryDirectory(prefix="sned-") as made:
        folder = Path(made)
        try:
            with _named_plainly(model):
                model.save(folder / MODEL)
        except Exception as error:
            raise ModelError(
                f"A Keras model goes to another process as a .keras file, but saving {type(model).__name__} failed: "
                f"{error}. Make `model.save('model.keras')` work first."
            ) from error
        job = {
            "function": function,
            "objects": _objects(model, backend),
            "arguments": arguments,
            "paths": paths_of(model),
        }
        (folder / JOB).write_bytes(pickle.dumps(job))
        CHILDREN[backend].ask(folder)
        with (folder / ANSWER).open("rb") as opened:
            return pickle.load(opened)


@contextmanager
def _named_plainly(model: Any) -> Iterator[None]:
    """Within the block, no layer has a dot in its name, which PyTorch would not take (MobileNets have, inside of other
    models too)."""
    dotted = [(layer, layer.name) for layer in model._flatten_layers() if "." in layer.name]
    for layer, name in dotted:
        layer.name = name.replace(".", "_")
    try:
        yield
    finally:
        for layer, name in dotted:
            layer.name = name


def _objects(model: Any, backend: str) -> dict[str, dict[str, str | None]]:
    """Where the classes and functions of the user's own are found."""
    found = {}
    for name, kind in own_objects(model).items():
        home = sys.modules.get(kind.__module__)
        file = getattr(home, "__file__", None)
        nowhere = file is None or not Path(file).is_file()  # a notebook, or what is typed in
        if "<locals>" in kind.__qualname__ or (kind.__module__ == "__main__" and nowhere):
            raise ModelError(
                f"{kind.__qualname__!r} must be importable by another process, which has the model under the "
                f"{TITLES[backend]} backend: define it at the top of a .py file and import it from there. Where "
                f"KERAS_BACKEND={backend} was set before Keras was imported, no other process is needed."
            )
        found[name] = {
            "module": kind.__module__,
            "qualname": kind.__qualname__,
            "file": file and os.path.abspath(file),  # noqa: PTH100
            "package": getattr(home, "__package__", None),
        }
    return found


class Child:
    """A process under another backend; it lives as long as this one."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[bytes] | None = None

    def ask(self, folder: Path) -> None:
        """Have the job in a folder done.

        Raises:
            SnedError: what the child raised.
            ModelError: it could not be started, or died.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(f"{folder}\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # Ctrl-C: what it is at is of no use any more
                self.end()
                raise
            if not line:
                raise ModelError(self._last_words())
        answer = json.loads(line)
        if answer:
            kind = getattr(sned.errors, answer["error"], ModelError)
            raise (kind if issubclass(kind, SnedError) else ModelError)(answer["text"])

    def end(self) -> None:
        """Stop the child."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the child)
            paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100
            extra = {
                "KERAS_BACKEND": self._backend,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "KERAS_TORCH_DEVICE": "cpu",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": os.pathsep.join(paths),
            }
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "sned.surgery.keras.child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._said,
                    text=True,
                    env={**os.environ, **extra},
                )
            except OSError as error:
                raise ModelError(
                    f"Keras models are looked at under the {TITLES[self._backend]} backend by another process, which "
                    f"`sys.executable` must be able to start, but {sys.executable!r} could not be run: {error}."
                ) from error
        return self._process

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._said is not None
        code = self._process.wait()
        self._process = None
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - TAIL))
        lines = map(str.strip, self._said.read().decode(errors="replace").splitlines())
        told = [line for line in lines if line and not NOISE.match(line)]
        said = f" It said last: {told[-1]}" if told else ""
        killed = " It was killed, perhaps for want of memory." if code == -9 else ""
        return (
            f"The process that has Keras models under the {TITLES[self._backend]} backend ended with code "
            f"{code}.{killed}{said} The model was not touched."
        )


CHILDREN = {backend: Child(backend) for backend in TITLES}
for _child in CHILDREN.values():
    atexit.register(_child.end)
