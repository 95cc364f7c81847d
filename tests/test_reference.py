"""docs/reference.md says what the code does, and nothing that people can type is left out of it."""

from __future__ import annotations

import re
from typing import Annotated

import pytest
import typer

from docs import reference
from trainer.config.settings import Section


def test_the_page_is_what_the_code_gives() -> None:
    written = reference.PAGE.read_text(encoding="utf-8")
    assert written == reference.page(), "out of date: run `make docs`"
    titles = {reference.anchor(title) for title in re.findall(r"^##+ (.*)$", written, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", written)) <= titles, "a link that leads nowhere"


class Sampler(Section):
    """One that is new."""

    seed: int = 0  # of its random numbers
    # how many it keeps:
    # the newest
    size: int | None = None
    temperature: float = 1.0


def test_a_key_means_what_its_comments_say_and_one_without_is_refused() -> None:
    assert reference.meanings_of(Sampler) == {
        "seed": "of its random numbers",
        "size": "how many it keeps: the newest",
    }
    with pytest.raises(reference.Undocumented, match=r"Sampler\.temperature"):
        reference.section_part(Sampler, {})


def paint(
    colour: Annotated[str, typer.Option("--colour", metavar="NAME", help="Its colour.")] = "red",
    coats: int = 1,
) -> None:
    """Paint it."""


def test_an_option_says_what_its_help_says_and_one_without_is_refused() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(paint)
    command = typer.main.get_command(app)
    with pytest.raises(reference.Undocumented, match="paint coats"):
        reference.command_part("paint", command)
    del command.params[1:]
    assert "| `--colour NAME` | `red` | Its colour. |" in reference.command_part("paint", command)
