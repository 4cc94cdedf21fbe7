"""Python objects named on the command line: `path/to/file.py:name` or `package.module:name`."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sned.errors import NotFoundError, UserError, close_names


def load_object(spec: str, *, what: str) -> Any:
    """Load the object that a specification names.

    Args:
        spec: `path/to/file.py:name` or `package.module:name`; a name may have dots.
        what: what it is for, for messages: "model", "calibration".

    Raises:
        NotFoundError: the file, the module or the name does not exist; close names are listed.
        UserError: the file fails when it is loaded, or the specification has no name.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise UserError(
            f"Give the {what} as 'path/to/file.py:name' or 'package.module:name', got '{spec}'. "
            f"For example: model.py:make_{what}."
        )
    module = _from_file(Path(source)) if _is_file_name(source) else _from_package(source)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = (
                [known for known in vars(found) if not known.startswith("_")]
                if hasattr(found, "__dict__")
                else []
            )
            raise NotFoundError(f"'{source}' has no '{name}'. {close_names(part, public)}")
        found = getattr(found, part)
    return found


def called(found: Any, *, spec: str) -> Any:
    """What a function gives, or the object itself where it is no function.

    Raises:
        UserError: the function failed.
    """
    if not callable(found):
        return found
    try:
        return found()
    except Exception as error:
        raise UserError(
            f"'{spec}' was called without arguments and failed with {type(error).__name__}: {error}. "
            "Give a function that needs no arguments, and try it in Python first."
        ) from error


def _is_file_name(source: str) -> bool:
    return source.endswith(".py") or "/" in source or "\\" in source


def _from_file(path: Path) -> ModuleType:
    """Load a file as a module; the same file gives the same module, and may import its neighbours."""
    if not path.is_file():
        raise NotFoundError(f"There is no file '{path}'. {_neighbours(path)}")
    full = path.resolve()
    name = f"{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise UserError(f"'{path}' is not a Python file. Give one whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the exporter look their module up
    try:
        with _importable(full.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise UserError(_failed(str(path), error)) from error
    return module


def _from_package(source: str) -> ModuleType:
    top = source.partition(".")[0]
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(source)
        except ModuleNotFoundError as error:
            if error.name is None or not (source == error.name or source.startswith(f"{error.name}.")):
                raise UserError(_failed(source, error)) from error
            hint = f"Is '{top}' installed, or this the right folder?"
            raise NotFoundError(
                f"There is no module '{source}'. {hint} For a file, give its name with .py."
            ) from error
        except Exception as error:
            raise UserError(_failed(source, error)) from error


def _failed(source: str, error: Exception) -> str:
    """Name the line of the user's own code at which loading failed."""
    trace = error.__traceback__
    line = None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == Path(source).name:
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" in line {line}" if line else ""
    return (
        f"'{source}' could not be loaded{where}: {type(error).__name__}: {error}. "
        "Check that it runs with Python by itself, in this environment."
    )


def _neighbours(path: Path) -> str:
    files = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return close_names(path.name, files) if files else f"In '{path.parent}' there are no Python files."


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """As `python file.py` has it: what lies beside can be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
