"""Learning from a teacher: the same lesson live and cached, on any number of ranks, resumed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.processes import measured, same, state, train, train_here
from trainer.config.settings import ConfigError
from trainer.config.train import resolve
from trainer.data.batches import TrainBatches
from trainer.data.splits import load_splits
from trainer.engine.distributed import World
from trainer.model.transformer import LanguageModel
from trainer.teaching.distillation import make_distiller
from trainer.teaching.teacher import find_teacher

Tiny = Callable[..., dict[str, Any]]
VOCABULARY = 52  # of the tests' text, <unk> and <eos> counted


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, world: World) -> Path:
    """The folder of a trained run that is not the students' size."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    model = {"layers": 4, "d_model": 24, "dropout": 0.0}
    train_here(tiny(folder, steps=60, eval_every=60, model=model, seed=1), world)
    return folder


@pytest.fixture
def student(tiny: Tiny, teacher: Path, tmp_path: Path) -> Tiny:
    """Makes the document of a student's config, in the folder `name`."""

    def document(name: str, /, distillation: dict[str, Any], **changes: Any) -> dict[str, Any]:
        section = {"enabled": True, "teacher": str(teacher), "beta": 0.5, **distillation}
        return tiny(tmp_path / name, distillation=section, **changes)

    return document


def distiller(document: dict[str, Any], alive: Callable[[], None] = lambda: None) -> Any:
    config = resolve(document, "test")
    named = find_teacher(config)
    assert named is not None
    splits = load_splits(config.data)
    return make_distiller(config, named, splits, torch.device("cpu"), lambda text: None, alive)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_cache_of_the_whole_vocabulary_teaches_what_the_live_teacher_does(
    student: Tiny, temperature: float
) -> None:
    settings = {"temperature": temperature}
    cached = student("cached", {**settings, "top_k": VOCABULARY})
    config = resolve(cached, "test")
    tokens = load_splits(config.data).tokens("train")
    batch = TrainBatches(tokens, 8, 8, seed=0, aligned=True).at(5)
    inputs, targets = (
        torch.from_numpy(part) for part in (batch.tokens[:, :-1], batch.tokens[:, 1:])
    )
    model = LanguageModel(config.model, VOCABULARY, 8)
    model.initialize(seed=0)
    model.eval()

    found = []
    for document in (cached, student("live", settings)):
        lesson = distiller(document).lesson(100, batch.starts, inputs)
        model.zero_grad()
        loss, terms = model(inputs, targets, None, lesson)
        loss.backward()
        found.append((terms, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (terms, gradients), (live_terms, live_gradients) = found
    torch.testing.assert_close(terms, live_terms, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, live_gradients, rtol=1e-4, atol=1e-7)
    assert terms[1] > 0.1


def test_the_teachers_weight_warms_up_and_stays(student: Tiny) -> None:
    warming = distiller(student("run", {"beta": 0.6, "beta_warmup_steps": 4}))
    assert [warming.mixture(step).beta for step in range(6)] == pytest.approx(
        [0.0, 0.15, 0.3, 0.45, 0.6, 0.6]
    )
    assert distiller(student("run", {"beta": 0.6})).mixture(0).beta == 0.6


@pytest.mark.parametrize(
    "lesson", [{}, {"top_k": 4}, {"kind": "features"}], ids=["live", "cached", "features"]
)
def test_a_student_is_the_same_stopped_and_resumed_and_on_two_ranks(
    student: Tiny, world: World, tmp_path: Path, lesson: dict[str, Any]
) -> None:
    warmed = {**lesson, "beta_warmup_steps": 6}
    train_here(student("whole", warmed), world)
    document = student("stopped", warmed)
    train(document, ask_to_stop_at=5)
    train(document)
    assert same(tmp_path / "stopped", tmp_path / "whole")

    plain = {"model": {"dropout": 0.0}}
    train_here(student("one", warmed, **plain), world)
    train(student("two", warmed, **plain), ranks=2)
    for one, two in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, rel=1e-4)
        assert one["distillation_loss"] > 0


def test_a_teacher_that_counts_for_nothing_changes_nothing(
    student: Tiny, tiny: Tiny, world: World, tmp_path: Path
) -> None:
    train_here(tiny(tmp_path / "alone"), world)
    train_here(student("taught", {"alpha": 1.0, "beta": 0.0}), world)
    assert state(tmp_path / "alone") == state(tmp_path / "taught")
    alone, taught = measured(tmp_path / "alone"), measured(tmp_path / "taught")
    assert [line["train_loss"] for line in alone] == [line["train_loss"] for line in taught]


def test_the_reported_loss_is_the_cross_entropy_and_not_the_mixture(
    student: Tiny, world: World, tmp_path: Path
) -> None:
    train_here(student("run", {"alpha": 0.0, "beta": 5.0}, steps=1, eval_every=1), world)
    line = measured(tmp_path / "run")[0]
    assert line["train_loss"] == pytest.approx(np.log(VOCABULARY), rel=0.02)


@pytest.mark.parametrize("lesson", [{}, {"top_k": 8}, {"kind": "features"}])
def test_a_student_comes_closer_to_its_teacher(
    student: Tiny, world: World, tmp_path: Path, lesson: dict[str, Any]
) -> None:
    longer: dict[str, Any] = {"steps": 60, "eval_every": 20, "layerdrop": {"policy": "none"}}
    train_here(student("run", {**lesson, "beta": 2.0}, **longer), world)
    far, *_, near = [line["distillation_loss"] for line in measured(tmp_path / "run")]
    assert near < 0.6 * far


def test_the_teacher_itself_does_not_change_and_has_no_gradient(student: Tiny) -> None:
    teaching = distiller(student("run", {}))
    inputs = torch.arange(16).view(2, 8)
    starts = np.zeros(2, np.int64)
    once, again = (teaching.lesson(step, starts, inputs).signal for step in (0, 1))
    assert torch.equal(once.hidden, again.hidden)
    assert not once.hidden.requires_grad
    assert not once.embedding.requires_grad


def cached(document: dict[str, Any]) -> bytes:
    return distiller(document)._cache.path.read_bytes()


def test_a_cache_is_built_once_and_its_size_is_said_before(
    student: Tiny, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_here(student("first", {"top_k": 3}), world)
    said = capsys.readouterr().out
    assert re.search(r"caching the teacher's 3 best of 3,992 predictions: 87.8 kB in /", said), said
    train_here(student("second", {"top_k": 3}), world)
    assert "caching" not in capsys.readouterr().out
    assert same(tmp_path / "first", tmp_path / "second")


def test_a_build_that_was_killed_is_gone_on_with(
    student: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = student("run", {"top_k": 5})
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "one"))
    whole = cached(document)

    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "two"))
    pieces = 0

    def killed_at_the_third_piece() -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distiller(document, killed_at_the_third_piece)
    left = next((tmp_path / "two").rglob("*.part"))
    with left.open("ab") as file:
        file.write(b"half a row")
    pieces = 3
    distiller(document, killed_at_the_third_piece)
    assert pieces < 3 + len(whole) // ((5 * 2 + 6 * 4) * 8 * 16)  # not from the start
    assert cached(document) == whole


def test_a_build_from_before_the_machine_started_anew_is_not_gone_on_with(
    student: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a power cut left of an unsynced file has any content."""
    document = student("run", {"top_k": 5})
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path))
    whole = cached(document)
    path = distiller(document)._cache.path
    path.unlink()
    path.with_suffix(".part").write_bytes(bytes(len(whole) // 2))
    os.utime(path.with_suffix(".part"), (0, 0))
    assert cached(document) == whole
    path.write_bytes(whole[:-1])
    assert cached(document) == whole, "a cut file is no cache"


def test_a_cache_past_the_limit_is_refused_and_nothing_is_written(
    student: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"distillation.top_k: 10 makes a cache of .* kB, more"):
        distiller(student("run", {"top_k": 10, "cache_limit_bytes": 1000}))
    with pytest.raises(ConfigError, match="distillation.top_k: 60 is more than"):
        distiller(student("run", {"top_k": 60}))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ConfigError, match=r"and the disk of .* has 100 bytes left; set HPO_CACHE"):
        distiller(student("run", {"top_k": 10}))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"teacher": None}, "distillation: teacher: enabled needs one"),
        ({"kind": "features", "top_k": 4}, "distillation: top_k: only goes with kind: logits"),
        ({"temperature": 0.0}, "distillation.temperature: "),
    ],
)
def test_what_does_not_go_together_is_one_line(
    student: Tiny, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        resolve(student("run", section), "train.yaml")
    assert "\n" not in str(error.value)


def test_the_cached_probabilities_are_the_teachers(student: Tiny, teacher: Path) -> None:
    document = student("run", {"top_k": 6})
    config = resolve(document, "test")
    tokens = np.asarray(load_splits(config.data).tokens("train"), np.int64)
    model = LanguageModel(find_teacher(config).config.model, VOCABULARY, 8)  # type: ignore[union-attr]
    from trainer.runs.checkpoint import newest_weights

    model.load_state_dict(newest_weights(teacher / "checkpoints"))
    starts = np.array([16, 800])
    inputs = torch.from_numpy(tokens[starts[:, None] + np.arange(8)])
    ids, log_probabilities = distiller(document)._cache.at(starts)
    with torch.no_grad():
        expected = (model.eval().hidden(inputs).flatten(0, 1) @ model.embedding.T).softmax(-1)
    np.testing.assert_allclose(log_probabilities[:, :-1].exp(), expected.gather(1, ids), rtol=1e-5)
    rest = 1 - expected.gather(1, ids).sum(dim=1)
    np.testing.assert_allclose(log_probabilities[:, -1].exp(), rest, rtol=1e-3, atol=1e-6)
