"""Every `--help` says what it said before the code moved into rooms, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpo.cli import app

KEPT = Path(__file__).with_name("help_texts.txt")  # printed 100 columns wide
TEXTS = dict(re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", KEPT.read_text(), re.MULTILINE))
COMMANDS = [
    *(command.name or command.callback.__name__ for command in app.registered_commands),
    "data",
    "data prepare",
]


def words(text: str) -> list[str]:
    return text.replace("│", " ").split()


def test_every_command_has_its_text() -> None:
    kept = {name.split(" ", 1)[1].removesuffix("--help").strip() for name in TEXTS if "hpo" in name}
    assert kept == {"", *COMMANDS}


@pytest.mark.parametrize("typed", [name for name in TEXTS if name.startswith("hpo ")])
def test_a_command_says_how_it_is_used(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    said = CliRunner().invoke(app, typed.split()[1:], prog_name="hpo", catch_exceptions=False)
    assert said.exit_code == 0
    assert words(said.output) == words(TEXTS[typed])


@pytest.mark.parametrize("module", ["trainer", "trainer.export"])
def test_a_program_says_how_it_is_used(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import trainer.__main__
    import trainer.export

    monkeypatch.setenv("COLUMNS", "100")
    main = {"trainer": trainer.__main__.main, "trainer.export": trainer.export.main}[module]
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert words(capsys.readouterr().out) == words(TEXTS[f"python -m {module} --help"])
