"""Definitions from a script without running it: what a class needs is made, and no model is built or trained."""

from __future__ import annotations

import ast
import symtable
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sned.errors import ModelError

NAME = "__mp_main__"
"""What a script is called where it is not the one that runs, as by `multiprocessing`."""


class Script:
    """The names of a script, each made with what it needs when it is first asked for.

    Args:
        file: the script.
        package: the one that its relative imports start from.
    """

    def __init__(self, file: str, package: str | None = None) -> None:
        self.module = types.ModuleType(NAME)
        self.module.__file__, self.module.__package__ = file, package
        sys.modules[NAME] = self.module
        self._left = ast.parse(Path(file).read_bytes(), file).body

    def provide(self, name: str) -> None:
        """Run the imports, definitions and assignments that a name needs, in their order; each once, but for imports.

        Raises:
            ModelError: one of them failed.
        """
        needed = _needed(self._left, name)
        self._left = [s for s in self._left if s not in needed or isinstance(s, ast.ImportFrom)]
        code = compile(ast.Module(needed, []), str(self.module.__file__), "exec", dont_inherit=True)
        try:
            exec(code, vars(self.module))
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{name!r} is defined in the script itself, and another process runs those lines of it that it "
                f"needs, but that failed: {type(error).__name__}: {error}. Put it into a file of its own and import it "
                "from there."
            ) from error


def _needed(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """The statements that bind a name, or one that these read, and so on."""
    names = [(statement, set(_bound(statement)), set(_read(statement))) for statement in body]
    wanted, count = {name, "*"}, 0
    while len(wanted) > count:
        count = len(wanted)
        for _, bound, read in names:
            wanted |= read if bound & wanted else set()
    return [statement for statement, bound, _ in names if bound & wanted]


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement gives a meaning, or something in what they mean; "*" for those not known by name."""
    if isinstance(statement, ast.ImportFrom) and (
        statement.module == "__future__" or statement.names[0].name == "*"
    ):
        yield "*"
        return
    yield from (
        symbol.get_name()
        for symbol in _table(statement).get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    )
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield from (inner.id for inner in ast.walk(node.value) if isinstance(inner, ast.Name))


def _read(statement: ast.stmt) -> Iterator[str]:
    """The names of the script that a statement reads, in functions inside it too."""

    def visit(table: Any, *, top: bool) -> Iterator[str]:
        yield from (symbol.get_name() for symbol in table.get_symbols() if top or symbol.is_global())
        for inner in table.get_children():
            yield from visit(inner, top=False)

    return visit(_table(statement), top=True)


def _table(statement: ast.stmt) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(statement), "script", "exec")
