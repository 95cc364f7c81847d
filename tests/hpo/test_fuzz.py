"""Study files and train configs wrong in any way: one line each, no traceback, no row, no file.

What ships is changed at random, as a document and as bytes, and given to `hpo start` up to where
the study would run, or to the trainer.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.cli import _one_line
from hpo.commands import running
from hpo.service import launch
from hpo.study.config import StudyConfig
from hpo.study.load import config_of, shipped
from storage import Ledger
from trainer.config.settings import _sections
from trainer.config.train import TrainConfig, load, train_paths

pytestmark = pytest.mark.slow

CASES = {"documents": 1200, "train configs": 400, "bytes": 300, "assignments": 100}

WORDS = [
    "", " ", "a", "none", "null", "true", "1e999", "nan", "-inf", "../x", "/", "/dev/null", "~",
    "~nobody-here", "$HOME", "\0", "a\0b", "\n", "\r\n", "\x1b[2J", "é", "\u202e", "\U0001f4a9",
    "日本", "x" * 5000, "2026-01-01", "valid_ppl", "tpe", "grid", "cmaes", "asha",
    "hyperband", "categorical", "int", "float", "text", "ptb", "model.layers", "optim.lr", "model",
    "layerdrop", "space", "valid_ppl_depth_2", "sqlite:///:memory:", "sqlite:////no/such/x.db",
    "x://", "postgresql://", "mysql://me@here/db", "__class__", "model_config",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 64, 100, 10**12, 2**31, 2**63, 10**30, -(10**30), 0.0, -0.0, 0.5, 1e-320,
    1e-12, 1e30, 1e308, -1e308, 0.1, math.inf, -math.inf, math.nan, True, False, None,
]  # fmt: skip
JUNK = st.recursive(
    st.sampled_from(WORDS) | st.sampled_from(NUMBERS) | st.text(max_size=8),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS) | st.integers(-1, 3) | st.none(), inside, max_size=3
        )
    ),
    max_leaves=6,
)


def names(model: Any) -> Iterator[str]:
    """Every setting's name in `model`, whatever section it is in."""
    for name, field in model.model_fields.items():
        yield name
        for section in _sections(field.annotation):
            yield from names(section)


NAMES = st.sampled_from(sorted({*names(StudyConfig), *names(TrainConfig)}))


def documents() -> list[dict[str, Any]]:
    """The studies that ship, with their train configs in them; and the train configs, searched."""
    train = {f.stem: yaml.safe_load(f.read_text()) for f in shipped("train").glob("*.yaml")}
    found = [yaml.safe_load(f.read_text()) for f in sorted(shipped("studies").glob("*.yaml"))]
    for study in found:
        if isinstance(study["train"], str):
            study["train"] = copy.deepcopy(train[Path(study["train"]).stem])
    lr = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
    found += [{"study": n, "train": d, "space": {"optim.lr": lr}} for n, d in sorted(train.items())]
    found += [
        {
            "study": "grid",
            "sampler": {"name": sampler},
            "train": {"steps": 20, "eval_every": 10},
            "space": {
                "model.dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1},
                "optim.warmup_steps": {"type": "int", "low": 1, "high": 9, "step": 2},
            },
        }
        for sampler in ("grid", "brute_force", "tpe")
    ]
    for study in found:
        if study["train"].get("data", {}).get("name") != "pydocs":  # texts that are not here
            study["train"]["data"] = {"name": "pydocs"}
    return found


DOCUMENTS = documents()


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in `document`, as its container and its key there."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(pairs):
        yield document, key
        if isinstance(value, (dict, list)):
            yield from places(value)


@st.composite
def changed(draw: Any, documents: list[dict[str, Any]]) -> bytes:
    """A document that ships, with one to three things wrong, as YAML."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        within, key = draw(st.sampled_from(list(places(document)) or [(document, "study")]))
        kind = draw(
            st.sampled_from(["value", "value", "added", "inside", "removed", "renamed", "deep"])
        )
        if kind == "removed":
            del within[key]
        elif kind == "renamed" and isinstance(within, dict):
            within[draw(NAMES | st.sampled_from(WORDS))] = within.pop(key, None)
        elif kind == "added" and isinstance(within, dict):
            within[draw(NAMES)] = draw(JUNK)
        elif kind == "inside":
            within[key] = {draw(NAMES): draw(JUNK)}
        elif kind == "deep":
            for _ in range(draw(st.sampled_from([5, 20, 40]))):
                within[key] = draw(st.sampled_from([[within[key]], {"a": within[key]}]))
        else:
            number = isinstance(within[key], (int, float))
            within[key] = draw(st.sampled_from(NUMBERS) if number else JUNK)
    return bytes(yaml.dump(document, allow_unicode=True, encoding="utf-8", Dumper=Dumper))


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes every value out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Ran(Exception):
    """The study was accepted, written, and would run."""


def said(command: Callable[[], object]) -> str | None:
    """The line that `command` refuses with, if it does."""
    try:
        command()
    except Ran:
        return None
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        assert message.isprintable(), message
        assert len(message) < 1000, message
        return message
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.setenv("HPO_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("HPO_STORAGE", raising=False)
        yield Path.cwd()


@pytest.fixture(scope="module")
def start(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str | None]]:
    """`hpo start` on a file of these bytes: the line that refuses it, if it is refused."""
    ledger = Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/hpo.db", create=True)
    create, numbers, accepted = launch.create_study, count(), []

    def created(_: Any, config: StudyConfig, *others: Any) -> Any:
        study = config.model_copy(update={"study": f"{config.study[:80]}-{next(numbers)}"})
        return create(ledger, study, *others)

    def run(launched: launch.Launch) -> None:
        config_of(launched.record)
        raise Ran

    def start(content: bytes, *settings: str) -> str | None:
        Path("study.yaml").write_bytes(content)
        message = said(lambda: running.start("study.yaml", list(settings)))
        assert os.listdir() == ["study.yaml"]
        accepted.append(message is None)
        return message

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "open_ledger", lambda url, create: None)
        patch.setattr(launch, "create_study", created)
        patch.setattr(running, "_run", run)
        assert start(yaml.safe_dump(DOCUMENTS[0]).encode()) is None
        yield start
    assert len(ledger.studies()) == sum(accepted) > 0


def fuzz(kind: str) -> Any:
    return settings(
        max_examples=CASES[kind], deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@fuzz("documents")
@given(changed(DOCUMENTS))
def test_a_changed_study_file_is_a_study_or_one_line(start: Any, content: bytes) -> None:
    start(content)


@fuzz("train configs")
@given(changed([study["train"] for study in DOCUMENTS]))
def test_a_changed_train_config_trains_or_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "train.yaml").write_bytes(content)
    said(lambda: load("train.yaml").check_ranks(1))
    (folder / "train.yaml").unlink()


@fuzz("bytes")
@given(st.sampled_from(DOCUMENTS), st.integers(0, 2000), st.integers(0, 50), st.binary(max_size=30))
def test_changed_bytes_are_a_study_or_one_line(
    start: Any, document: dict[str, Any], position: int, cut: int, junk: bytes
) -> None:
    text = yaml.safe_dump(document).encode()
    start(text[:position] + junk + text[position + cut :])


@fuzz("assignments")
@given(st.sampled_from(train_paths()) | st.text(max_size=20), JUNK)
def test_any_text_is_an_assignment_or_one_line(start: Any, name: str, value: Any) -> None:
    start(yaml.safe_dump(DOCUMENTS[0]).encode(), f"{name}={value}")
