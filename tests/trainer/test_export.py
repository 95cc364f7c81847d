"""Exported models: the numbers of the run they come from, whole folders, one-line refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.processes import train_here
from trainer.config.sections import EvaluationConfig
from trainer.config.settings import ConfigError
from trainer.config.train import load
from trainer.data.batches import EvalBlocks
from trainer.data.splits import load_splits
from trainer.engine.distributed import World
from trainer.export import _weights, export, load_model, main
from trainer.measuring.depth import depth_front
from trainer.model.transformer import LanguageModel

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(world: World, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run whose depth front has three of four layers, found by both searches."""
    folder = tmp_path_factory.mktemp("export") / "run"
    changes = {"model": {"layers": 4}, "layerdrop": {"start_layer": 4, "caps": {4: 0.3}}}
    train_here(tiny(folder, steps=4, evaluation={"depths": [3]}, **changes), world)
    return folder


def perplexity(folder: Path) -> float:
    """Of valid, by an exported model alone."""
    model, config = load_model(folder), load(folder / "config.yaml")
    blocks = EvalBlocks(load_splits(config.data).tokens("valid"), config.data.context)
    total = 0.0
    for batch in blocks.batches(0, 1, 4):
        total += model.total_nll(*map(torch.from_numpy, batch)).item()
    return math.exp(total / blocks.targets)


def test_a_whole_model_measures_what_its_run_did(run: Path) -> None:
    target, said = export(run)
    result = json.loads((run / "result.json").read_text())
    assert target == run / "export"
    assert said == "step 4, layers 1 2 3 4 of 4 (whole)"
    assert perplexity(target) == pytest.approx(result["valid_ppl"], rel=1e-12)
    assert (target / "config.yaml").read_text() == (run / "config.yaml").read_text()
    weights = load_file(target / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert set(weights) == set(load_model(target).state_dict())
    modes = {path.stat().st_mode for path in (*target.iterdir(), run / "result.json")}
    assert len(modes) == 1, "whom the umask lets read a run may read what is exported"
    words = (target / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    assert tuple(words) == load_splits(load(run / "config.yaml").data).vocabulary.words


def test_a_sub_model_measures_what_the_front_says_of_the_better_search(
    run: Path, tmp_path: Path
) -> None:
    result = json.loads((run / "result.json").read_text())
    first, second, _ = (point["valid_ppl"] for point in result["depth_front"])
    assert first != second, "the searches found different layers"
    target, _ = export(run, 3, tmp_path / "deep" / "three")
    assert perplexity(target) == pytest.approx(min(first, second), rel=1e-12)
    model = load_model(target)
    assert sum(p.numel() for p in model.parameters()) == result["parameters_depth_3"]
    assert load(target / "config.yaml").model.layers == len(model.blocks) == 3


def test_a_depth_that_was_not_measured_is_every_other(run: Path, tmp_path: Path) -> None:
    target, said = export(run, 2, tmp_path / "two")
    assert said == "step 4, layers 1 4 of 4 (every_other, not measured)"
    whole = load_model(export(run, None, tmp_path / "whole")[0])
    for mine, its in zip(load_model(target).blocks, (0, 3), strict=True):
        assert torch.equal(mine.qkv.weight, whole.blocks[its].qkv.weight)


def test_what_only_distillation_needs_is_neither_exported_nor_counted(run: Path) -> None:
    config = load(run / "config.yaml").model
    student = LanguageModel(config, vocabulary=50, context=8, teacher_width=24)
    state = {f"weights/{name}": weight for name, weight in student.named_parameters()}
    alone = LanguageModel(config, vocabulary=50, context=8)
    weights = _weights(state, (1, 2, 3, 4))
    assert {name: w.shape for name, w in weights.items()} == {
        name: w.shape for name, w in alone.state_dict().items()
    }
    (whole,) = depth_front(
        student, EvaluationConfig(), 9.0, lambda mask: 9.0, lambda mask: 9.0, rows=1
    )
    assert whole["parameters"] == sum(w.numel() for w in weights.values())


def test_a_process_killed_while_it_exports_leaves_no_folder_and_the_next_makes_it(
    run: Path, tmp_path: Path
) -> None:
    program = (
        "import os, signal, trainer.config.whole as whole, trainer.export as e\n"
        "from pathlib import Path\n"
        "whole.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"e.export(Path({str(run)!r}), None, Path({str(tmp_path / 'x')!r}))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert not (tmp_path / "x").exists()
    export(run, None, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert load_model(tmp_path / "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/nowhere"], "nowhere/config.yaml: no such file"),
        (["{run}", "--depth", "5"], "--depth 5: .*run has 4 layers; use 1 to 4"),
        (["{run}", "-o", "{tmp}"], ": is there already; remove it, or give another folder with -o"),
        (["{run}", "-o", "{run}/config.yaml/x"], "cannot be written"),
        (["{tmp}/untrained"], "untrained: has no checkpoint yet; export it after"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "untrained").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "untrained")
    assert main([text.format(run=run, tmp=tmp_path) for text in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("trainer.export: ")
    assert shown.err.count("\n") == 1
    assert re.search(words, shown.err)


def test_a_text_that_changed_since_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    text = tmp_path / "train.txt"
    text.write_text("quite another text\n" * 200)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(
        config.replace(load(run / "config.yaml").data.train, str(text))
    )
    with pytest.raises(ConfigError, match="data: has 5 tokens now, and the model knows 52"):
        export(other, None, tmp_path / "exported")


def test_a_folder_that_is_no_export_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.safetensors: cannot be read"):
        load_model(run)
    with pytest.raises(ConfigError, match="config.yaml: no such file"):
        load_model(tmp_path)
