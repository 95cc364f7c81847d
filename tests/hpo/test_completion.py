"""A shell completes what one types of a command, its options and the studies there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from tests.hpo.stage import Stage


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("hpo sta", ["start", "status"]),
        ("hpo show pl", ["played"]),
        ("hpo show --storage sqlite:///none.db pl", []),
    ],
)
def test_bash_completes(line: str, completed: list[str], tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/hpo.db")
    # Another program's study: a shell would run what is in its name.
    optuna.create_study(study_name="pl$(touch ran)", storage=stage.ledger.storage)
    program = tmp_path / "hpo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hpo "$@"\n')
    program.chmod(0o700)
    script = (
        f'eval "$(_HPO_COMPLETE=source_bash {program})"; COMP_WORDS=({line}); '
        f"COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _hpo_completion {program}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop("HPO_STORAGE", None)
    said = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert (said.stdout.split(), said.stderr) == (completed, "")
    assert not (tmp_path / "none.db").exists()
