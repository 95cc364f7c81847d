"""Our exceptions have one root; the command tells the user's and the database's in one line."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

import hpo
from hpo.cli import _one_line
from storage import LedgerError
from trainer.config.settings import ConfigError

ROOT = Path(__file__).parents[2]


def classes_of(package: str) -> list[object]:
    """Every class that a module of `package` defines at its top level."""
    found: list[object] = []
    for file in sorted((ROOT / package).rglob("*.py")):
        names = [n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef)]
        if names:
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            found += [getattr(module, name) for name in names]
    return found


def test_every_exception_of_ours_is_an_hpo_error_and_stands_on_its_page() -> None:
    classes = [c for package in ("hpo", "trainer", "storage") for c in classes_of(package)]
    ours = {c for c in classes if isinstance(c, type) and issubclass(c, BaseException)}
    assert len(ours) > 15
    assert not {c.__name__ for c in ours if not issubclass(c, hpo.HpoError)}
    page = (hpo.HpoError.__doc__ or "").split()
    assert not {c.__name__ for c in ours - {hpo.HpoError}} - set(page)


def database_error() -> OperationalError:
    with pytest.raises(OperationalError) as raised:
        sa.create_engine("sqlite:////no/such/folder/x.db").connect()
    return raised.value


def test_the_users_mistakes_are_told_as_they_are() -> None:
    assert _one_line(ConfigError("study.yaml: space: wrong")) == "study.yaml: space: wrong"
    assert _one_line(LedgerError("no study called x")) == "no study called x"


def test_the_databases_errors_are_told_without_their_sql() -> None:
    error = database_error()
    assert _one_line(error) == "the database: unable to open database file"
    wrapped = StorageInternalError("during the commit")
    wrapped.__cause__ = error
    assert _one_line(wrapped) == "the database: unable to open database file"


def test_an_error_of_ours_keeps_its_traceback() -> None:
    assert _one_line(ZeroDivisionError()) is None
