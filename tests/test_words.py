"""docs/words.md names every message, reason and public exception of the code, and no others."""

from __future__ import annotations

import re
from pathlib import Path
from pydoc import locate
from typing import get_args

import hpo
from hpo.control.messages import Kind
from storage import Reason, TeacherState

PAGE = (Path(__file__).parents[1] / "docs" / "words.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[str]:
    """What stands in backticks in the first column of the table below `heading`, row by row."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall("`(.*?)`", cell)]


def test_every_message_of_a_gang_is_on_the_page_and_no_other() -> None:
    assert sorted(first_column("Messages")) == sorted(get_args(Kind))


def test_every_reason_is_on_the_page_and_no_other() -> None:
    assert sorted(first_column("Reasons")) == sorted(Reason)


def test_every_state_of_a_teacher_is_on_the_page() -> None:
    assert not {state for state in TeacherState if f"`{state}`" not in PAGE}


def test_every_exception_on_the_page_can_be_imported_from_there() -> None:
    names = first_column("Exceptions")
    exceptions = {name: locate(name) for name in names if name != "KeyboardInterrupt"}
    assert len(exceptions) > 5
    wrong = {
        name
        for name, found in exceptions.items()
        if not isinstance(found, type) or not issubclass(found, hpo.HpoError)
    }
    assert not wrong
    public = {f"hpo.{name}" for name in hpo.__all__ if isinstance(getattr(hpo, name), type)}
    assert public - {"hpo.Study", "hpo.StudyConfig", "hpo.HpoError"} <= exceptions.keys()
