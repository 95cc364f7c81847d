"""What the command makes of an exception: one line for the user's and the database's."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from hpo.cli import _one_line
from storage import LedgerError
from trainer.config.settings import ConfigError


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
