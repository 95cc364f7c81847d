"""Small study files, and what the loader refuses them with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo.study.load import load_study
from trainer.config.settings import ConfigError

STUDY: dict[str, Any] = {
    "study": "tiny",
    "budget": {"trials": 3},
    "train": {"steps": 20, "eval_every": 10},
    "space": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    """A study file with dotted `changes` to STUDY; dots in keys of the space are kept."""
    document = copy.deepcopy(STUDY)
    document.update(changes)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def refusal(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        load_study(written(tmp_path, **changes))
    message = str(refused.value)
    assert "\n" not in message
    assert "study.yaml" in message
    return message.partition("study.yaml: ")[2]
