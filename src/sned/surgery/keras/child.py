"""The process under another backend that does with a model what cannot be done under the user's: see `client`.

It reads the names of folders from its standard input, one a line, and answers each with a line of JSON. It ends when
its input does, in the middle of work too; Ctrl-C is for its parent to hear.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sned.errors import ModelError, SnedError
from sned.surgery.keras.script import Script

MODEL, JOB, ANSWER = "model.keras", "job.pickle", "answer.pickle"
"""The files of a job."""


def serve(folder: Path) -> None:
    """Call the function that a job names with the model in its folder, and leave there what it returns."""
    import keras

    from sned.surgery.keras.naming import call_alike
    from sned.surgery.keras.outside import within_keras

    with (folder / JOB).open("rb") as opened:
        job = pickle.load(opened)
    found = {name: _found(**where) for name, where in job["objects"].items()}
    with within_keras():
        model = keras.saving.load_model(folder / MODEL, custom_objects=found, compile=False, safe_mode=False)
    call_alike(model, job["paths"])
    module, _, name = job["function"].partition(":")
    answer = getattr(importlib.import_module(module), name)(model, *job["arguments"])
    with (folder / ANSWER).open("wb") as opened:
        pickle.dump(answer, opened, protocol=pickle.HIGHEST_PROTOCOL)


def _found(module: str, qualname: str, file: str | None, package: str | None) -> Any:
    """A class or function of the user's, from the module that it is in."""
    found: Any
    if module == "__main__" and file is not None:
        script = _script(file, package)
        script.provide(qualname.partition(".")[0])
        found = script.module
    else:
        found = _module(module, file)
    for step in qualname.split("."):
        if not hasattr(found, step):
            raise ModelError(
                f"{qualname!r} must be found in {module!r} under its own name: define it at the top of a "
                "module, not inside a function."
            )
        found = getattr(found, step)
    return found


_script = functools.cache(Script)
"""The script that the parent runs."""


def _module(name: str, file: str | None) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise ModelError(
                f"The module {name!r} that a part of the model is defined in cannot be imported by another process: "
                f"{error}. Put it into a file of its own and import it from there."
            ) from error
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _answer(folder: str) -> Mapping[str, str]:
    try:
        serve(Path(folder))
    except SnedError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        from sned.surgery.keras.configuration import reason_of

        return {"error": "ModelError", "text": f"{type(error).__name__}: {reason_of(error)}."}
    return {}


def main() -> None:
    """Answer jobs until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not for the parent to read
    jobs: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line.strip())
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        answers.write(json.dumps(_answer(jobs.get())) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
