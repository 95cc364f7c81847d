"""Where the product commits to its ledger, read from its code, and what can befall it there.

A place is a `with` statement at whose end a transaction commits. Commits themselves are seen where
SQLAlchemy makes them, on the database's connection: one that no such statement makes is seen too.
"""

from __future__ import annotations

import ast
import functools
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from sqlalchemy.engine.default import DefaultDialect

import hpo

ROOT = Path(hpo.__file__).parents[1]
PACKAGES = ("hpo/", "storage/")
BEGINNINGS = frozenset({"joined", "begin"})  # a `with` of them commits: several of Optuna's, one
JOINED = "storage/session.py"  # where commits pass through that others make

Moment = Literal["before", "after"]


@dataclass(frozen=True)
class Write:
    """A `with` statement that may commit."""

    file: str
    function: str
    lines: range  # of its head
    begins: str  # the function that it calls
    lends: bool  # it yields in between: whoever uses its function in a `with` is who commits
    nth: int = 1  # of its function's

    def __str__(self) -> str:
        return f"{self.file}:{self.function}" + (f" ({self.nth})" if self.nth > 1 else "")


@dataclass(frozen=True)
class FailPoint:
    """A moment around the n-th commit (from 1) of a place, and what befalls the process then."""

    place: str | None  # None: any that is listed
    moment: Moment
    nth: int
    kills: bool = True  # else the commit raises: it was refused, or its answer was lost

    def __str__(self) -> str:
        return f"{self.moment} commit {self.nth} of {self.place or 'any'}"

    def strike(self) -> None:
        """Let it happen."""
        if self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        raise sqlite3.OperationalError(f"lost {self}")


@functools.cache
def writes() -> tuple[list[Write], list[Write]]:
    """Every statement of the product that commits: for itself, and for those who use it."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    found = [write for file in files for write in _withs(file)]
    lenders: list[Write] = []
    beginnings, known = set(BEGINNINGS), 0
    while len(beginnings) > known:
        known = len(beginnings)
        lenders = [w for w in found if w.lends and w.begins in beginnings]
        beginnings |= {w.function.split(".")[-1] for w in lenders}
    own, of_function = list[Write](), Counter[str]()
    for write in found:
        if write.begins in beginnings and not write.lends:
            of_function[str(write)] += 1
            own.append(replace(write, nth=of_function[str(write)]))
    return own, lenders


def _withs(file: Path) -> Iterator[Write]:
    """Every `with` of a file whose head is a call."""

    def visit(node: ast.AST, scope: tuple[str, ...]) -> Iterator[Write]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = (*scope, node.name)
        for call in (item.context_expr for item in getattr(node, "items", ())):
            if isinstance(node, ast.With) and isinstance(call, ast.Call):
                lines = range(node.lineno, node.body[0].lineno)
                begins = ast.unparse(call.func).split(".")[-1]
                lends = any(isinstance(inner, ast.Yield) for inner in ast.walk(node))
                yield Write(str(file.relative_to(ROOT)), ".".join(scope), lines, begins, lends)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, scope)

    return visit(ast.parse(file.read_text()), ())


def watch(doom: FailPoint | None = None) -> Counter[str]:
    """Count this process's commits by their places from now on; at `doom` it strikes."""
    written, lent = ({(w.file, n): str(w) for w in ws for n in w.lines} for ws in writes())
    seen: Counter[str] = Counter()
    commit = DefaultDialect.do_commit

    def counted(dialect: DefaultDialect, connection: Any) -> None:
        # SQLite says whether there is anything to commit: Optuna commits what it only read, too.
        place = _place(written, lent) if getattr(connection, "in_transaction", True) else ""
        # What other threads write comes by the clock: only the first is sure to come again.
        if place and (not seen[place] or threading.current_thread() is threading.main_thread()):
            seen[place] += 1
        due = doom is not None and _due(doom, place, seen)
        if due and doom.moment == "before":
            doom.strike()
        commit(dialect, connection)
        if due:
            doom.strike()

    DefaultDialect.do_commit = counted
    return seen


def _due(doom: FailPoint, place: str, seen: Counter[str]) -> bool:
    if doom.place is not None:
        return (place, seen[place]) == (doom.place, doom.nth)
    listed = {str(write) for write in writes()[0]}
    return place in listed and sum(seen[one] for one in listed) == doom.nth


def _place(written: dict[tuple[str, int], str], lent: dict[tuple[str, int], str]) -> str:
    """The innermost statement of the product that the caller's commit belongs to."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        if file.startswith(PACKAGES) and file != JOINED and (file, frame.f_lineno) not in lent:
            alone = f"{file}:{frame.f_code.co_qualname}, on its own"
            return written.get((file, frame.f_lineno), alone)
        frame = frame.f_back
    return "outside the product"
