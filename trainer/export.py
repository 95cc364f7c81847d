"""Standalone models: `python -m trainer.export RUN` writes a trained run's weights, and no more.

The folder has `model.safetensors` (fp32, by name), `config.yaml` and the vocabulary: words in
`vocabulary.txt`, a line each in the order of their ids, or byte pairs in `tokenizer.json`. That is
all that `load_model` and a user need. The run itself is only read.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config.settings import ConfigError, is_url
from trainer.config.train import TrainConfig, load, resolve
from trainer.config.whole import whole_folder
from trainer.data.splits import load_splits
from trainer.ending import end_soon
from trainer.measuring.depth import every_other
from trainer.model.transformer import DTYPES, LanguageModel
from trainer.runs.checkpoint import (
    CheckpointError,
    Progress,
    newest_checkpoint,
    weights_of,
    write_tensors,
)
from trainer.runs.remote import run_here

_WEIGHTS, _CONFIG = "model.safetensors", "config.yaml"
_OF_TRAINING = "projection"  # to a teacher's width; the trained model does not need it
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def export(
    run: str | Path, depth: int | None = None, target: Path | None = None
) -> tuple[Path, str]:
    """Write the newest checkpoint of `run`, a folder or URL, to `target`; return where and what.

    `depth` asks for a sub-model of so many layers: the best of the run's depth front, or the
    "every other" one where the front has none. Raises ConfigError and CheckpointError.
    """
    if is_url(str(run)):
        if target is None:
            raise ConfigError(f"{run}: is no folder here; say with -o where to write")
        with run_here(str(run)) as folder:
            return export(folder, depth, target)
    run = Path(run)
    target = target or run / ("export" if depth is None else f"export-depth-{depth}")
    if target.exists():
        raise ConfigError(f"{target}: is there already; remove it, or give another folder with -o")
    config = load(run / _CONFIG)
    whole = config.model.layers
    if depth is not None and not 1 <= depth <= whole:
        raise ConfigError(f"--depth {depth}: {run} has {whole} layers; use 1 to {whole}")
    found = newest_checkpoint(run / "checkpoints")
    if found is None:
        raise ConfigError(f"{run}: has no checkpoint yet; export it after its first evaluation")
    state, progress = found
    layers, search = _kept(whole, depth, progress)
    vocabulary = load_splits(config.data).vocabulary
    weights = _weights(state, layers)
    if len(vocabulary) != len(weights["embedding"]):
        raise ConfigError(
            f"{run / _CONFIG}: data: has {len(vocabulary)} tokens now, and the model knows "
            f"{len(weights['embedding'])}; put back the texts that it was trained on"
        )
    exported = _config_of(config, len(layers)).to_yaml().encode()
    files = {_CONFIG: exported, vocabulary.file_name: vocabulary.to_bytes()}
    _write(target, weights, files)
    kept = " ".join(map(str, layers))
    return target, f"step {progress.step}, layers {kept} of {whole} ({search})"


def load_model(folder: Path) -> LanguageModel:
    """The model that `export` wrote to `folder`, ready to evaluate. Raises ConfigError."""
    config = load(folder / _CONFIG)
    try:
        weights = load_file(folder / _WEIGHTS)
        vocabulary, context = len(weights["embedding"]), config.data.context
        model = LanguageModel(config.model, vocabulary, context, DTYPES[config.precision])
        model.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{folder / _WEIGHTS}: cannot be read: {error}") from None
    return model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Export as `argv` says; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m trainer.export", description="Write a trained run's model, to be used alone."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its URL")
    parser.add_argument("--depth", type=int, metavar="N", help="a sub-model of N layers")
    parser.add_argument(
        "-o", dest="target", type=Path, metavar="DIR", help="default: RUN/export[-depth-N]"
    )
    arguments = parser.parse_args(argv)
    try:
        target, what = export(arguments.run, arguments.depth, arguments.target)
    except (ConfigError, CheckpointError) as error:
        print(f"trainer.export: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{target}: {what}")
    return 0


def _kept(whole: int, depth: int | None, progress: Progress) -> tuple[Sequence[int], str]:
    """The layers to keep, and how they were found."""
    if depth in (None, whole):
        return range(1, whole + 1), "whole"
    assert depth is not None
    measured = [point for point in progress.depth_front if point["depth"] == depth]
    if not measured:
        return every_other(whole, depth), "every_other, not measured"
    best = min(measured, key=lambda point: point["valid_ppl"])
    return best["layers"], f"{best['search']}, valid_ppl {best['valid_ppl']:.6g}"


def _weights(state: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a checkpoint with only its `layers`, numbered anew."""
    new = {str(layer - 1): index for index, layer in enumerate(layers)}
    weights = {}
    for name, value in weights_of(state).items():
        block = _BLOCK.match(name)
        if name != _OF_TRAINING and (block is None or block[1] in new):
            weights[_BLOCK.sub(lambda b: f"blocks.{new[b[1]]}.", name)] = value
    return weights


def _config_of(config: TrainConfig, layers: int) -> TrainConfig:
    """The config of the model that is written, with settings that fit its number of layers."""
    if layers == config.model.layers:
        return config
    document = config.document()
    document["model"]["layers"] = layers
    document["layerdrop"] = {"policy": "none"}  # the old one is about the whole model's layers
    document["evaluation"].update(depths=[], reference=None)
    return resolve(document, f"{_CONFIG} at depth {layers}")


def _write(target: Path, weights: dict[str, Tensor], files: Mapping[str, bytes]) -> None:
    """Make the folder `target`, whole or not at all."""
    aside = target.with_name(f".{target.name}.writing")
    try:
        with whole_folder(target, aside, durable=True):
            write_tensors(weights, aside / _WEIGHTS)
            for name, content in files.items():
                (aside / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    end_soon()
    sys.exit(main())
