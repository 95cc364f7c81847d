"""What an evaluation measures: every token once, from the context stated, per word of the text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.trainer.processes import measured, train, train_here
from trainer.__main__ import main
from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, load, resolve
from trainer.data.splits import load_splits
from trainer.data.tokens import SplitWithheld
from trainer.engine.distributed import World
from trainer.model.transformer import LanguageModel
from trainer.run import Run

pytestmark = pytest.mark.slow

Tiny = Callable[..., dict[str, Any]]


def trained(folder: Path, config: TrainConfig, vocabulary: int) -> LanguageModel:
    """The model of a run's newest checkpoint."""
    model = LanguageModel(config.model, vocabulary, config.data.context).eval()
    state = load_file(max((folder / "checkpoints").iterdir()) / "state.safetensors")
    prefix = "weights/"
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    return model


def naive_perplexity(folder: Path) -> float:
    """Valid perplexity of a run, one token at a time, its context found by counting."""
    config = load(folder / "config.yaml")
    splits = load_splits(config.data)
    model = trained(folder, config, len(splits.vocabulary))
    tokens = torch.tensor(splits.tokens("valid").astype("int64"))
    context, stride = config.data.context, config.evaluation.stride or config.data.context
    total, begin, end = 0.0, 0, context  # a window has the targets begin + 1 to end
    for target in range(1, len(tokens)):
        if target > end:
            begin, end = begin + stride, end + stride
        logits = model.hidden(tokens[None, begin:target])[0, -1] @ model.embedding.T
        total -= torch.log_softmax(logits.double(), -1)[tokens[target]].item()
    valid = Path(config.data.valid or "").read_text().splitlines()
    words = sum(len(line.split()) + 1 for line in valid)
    return math.exp(total / (words - 1))


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize("tokenizer", ["words", "bpe"])
def test_perplexity_is_that_of_one_token_at_a_time_per_word_of_the_text(
    world: World, tiny: Tiny, tmp_path: Path, stride: int | None, tokenizer: str
) -> None:
    data = {"tokenizer": tokenizer, "vocabulary_size": 280}
    document = tiny(tmp_path, steps=4, data=data, evaluation={"stride": stride})
    [report] = train_here(document, world)
    assert report.metrics["valid_ppl"] == pytest.approx(naive_perplexity(tmp_path), rel=1e-5)


def test_a_run_reads_the_test_split_at_its_end_if_it_is_an_evaluation(
    world: World, tiny: Tiny, texts: dict[str, str], tmp_path: Path
) -> None:
    changes = {"steps": 4, "eval_every": 2, "data": {"valid": texts["test"]}}
    reports = train_here(tiny(tmp_path / "evaluation", phase="evaluation", **changes), world)
    assert "test_ppl" not in reports[0].metrics, "once, at the end"
    assert reports[1].metrics["test_ppl"] == reports[1].metrics["valid_ppl"], "one text for both"
    tuning = tiny(tmp_path / "tuning", **{**changes, "data": {"test": None}})
    with closing(Run(resolve(tuning, ""), world)) as run:
        with pytest.raises(SplitWithheld):
            run._evaluator.test()
        assert run.advance().kind == "evaluated"
        assert "test_ppl" not in run.advance().metrics


def test_only_an_evaluation_of_the_service_may_say_that_it_is_one(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(tiny(tmp_path / "run", phase="evaluation")))
    assert main([str(file)]) == 2
    assert "only `hpo evaluate` and `hpo compare` do; leave phase out" in capsys.readouterr().err
    file.write_text(yaml.safe_dump(tiny(tmp_path / "run")))
    assert main([str(file), "phase=evaluation"]) == 2
    assert "phase: only `hpo evaluate` and `hpo compare` set it" in capsys.readouterr().err
    document = tiny(tmp_path, phase="evaluation", data={"test": None})
    with pytest.raises(ConfigError, match="data.test: an evaluation needs the path"):
        resolve(document, "file.yaml")


def test_an_evaluation_gives_a_sign_of_life_after_each_batch(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    signs: list[int] = []
    config = resolve(tiny(tmp_path, steps=1, eval_every=1), "")
    with closing(Run(config, world, on_evaluation_batch=lambda: signs.append(1))) as run:
        run.advance()
    windows = math.ceil((40 * 10 - 1) / config.data.context)
    assert len(signs) == math.ceil(windows / (config.data.batch_size // config.optim.accumulation))


def test_a_result_states_its_stride_and_ranks_agree_on_it(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    plain = {"steps": 4, "model": {"dropout": 0.0}, "evaluation": {"stride": 3}}
    train_here(tiny(tmp_path / "one", **plain), world)
    train(tiny(tmp_path / "two", **plain), ranks=2)
    [one], [two] = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-4)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["evaluation_stride"] == one["evaluation_stride"] == 3


def test_a_result_without_overlap_states_no_stride(
    world: World, tiny: Tiny, tmp_path: Path
) -> None:
    train_here(tiny(tmp_path, steps=1), world)
    assert "evaluation_stride" not in json.loads((tmp_path / "result.json").read_text())


def test_a_stride_that_would_skip_tokens_is_refused() -> None:
    document = {"data": {"context": 8}, "evaluation": {"stride": 9}}
    with pytest.raises(ConfigError, match="evaluation.stride: 9 is past data.context 8"):
        resolve(document, "file.yaml")
