"""The train config: every setting of one training run, its type, unit and bounds.

Precedence: the defaults below, then the file, then `path=value` from the command line. This
module imports no torch, so that a study is validated before any worker starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator

from trainer.settings import (
    ConfigError,
    Document,
    Section,
    check_value,
    leaf_fields,
    nearest,
    parse_assignment,
    read_document,
    set_path,
    validated,
)

Probability = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Precision = Literal["fp32", "bf16", "fp16"]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class DataConfig(Section):
    """What to train on, and how it is cut into batches."""

    name: Literal["pydocs", "ptb", "wikitext-2", "text"] = "pydocs"
    dir: str | None = None  # folder holding ptb/ and wikitext-2/; else HPO_DATA_DIR
    train: str | None = None  # with name: text, three paths
    valid: str | None = None
    test: str | None = None
    context: Count = 64  # tokens in a sequence
    batch_size: Count = 16  # sequences in an optimizer step, over all ranks and micro steps

    @model_validator(mode="after")
    def _text_has_three_paths(self) -> DataConfig:
        for split in ("train", "valid", "test"):
            given = getattr(self, split) is not None
            if given and self.name != "text":
                raise ValueError(f"{split}: a path goes with name: text, not name: {self.name}")
            if not given and self.name == "text":
                raise ValueError(f"{split}: name: text needs a path to the {split} text")
        return self


class ModelConfig(Section):
    """A decoder-only, pre-LN Transformer with tied embeddings."""

    layers: Count = 4
    d_model: Count = 64
    heads: Count = 4
    d_ff: Count = 256
    dropout: Probability = 0.1
    activation_checkpointing: bool = False  # recompute each block in backward, to save memory
    compile: bool = False  # torch.compile each block: a minute at the start, faster steps

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}")
        return self


class LayerDropConfig(Section):
    """The drop policy: each layer's probability of being skipped at a step."""

    policy: Literal["none", "static", "linear", "cosine"] = "none"
    p_init: Probability = 0.2
    p_final: Probability = 0.05
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the run's steps
    decay_steps: Count | None = None  # an absolute length, instead of decay_fraction
    start_layer: Count = 1  # layers count from 1; those before are never skipped


class OptimConfig(Section):
    """AdamW with a linear warm-up and a decay."""

    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    warmup_steps: Annotated[int, Field(ge=0)] = 40
    schedule: Literal["constant", "cosine"] = "cosine"
    lr_final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # of lr, at the last step
    grad_clip: NonNegative = 1.0  # largest global gradient norm; 0 clips nothing
    accumulation: Count = 1  # micro steps in an optimizer step


# Keys of DeepSpeed's that a train config sets through a setting of its own.
_DEEPSPEED_KEYS = {
    "train_batch_size": "data.batch_size",
    "train_micro_batch_size_per_gpu": "data.batch_size and optim.accumulation",
    "gradient_accumulation_steps": "optim.accumulation",
    "gradient_clipping": "optim.grad_clip",
    "optimizer": "optim",
    "scheduler": "optim",
    "bf16": "precision",
    "fp16": "precision",
    "torch_autocast": "precision",
    "zero_force_ds_cpu_optimizer": "zero_optimization.offload_optimizer",
}


class DeepSpeedConfig(Section):
    """`zero_stage`; anything more is passed to DeepSpeed as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    zero_stage: Literal[0, 1, 2, 3] = 2

    @model_validator(mode="after")
    def _leaves_ours_alone(self) -> DeepSpeedConfig:
        extra = self.model_extra or {}
        for key in extra.keys() & _DEEPSPEED_KEYS.keys():
            raise ValueError(f"{key}: is set by {_DEEPSPEED_KEYS[key]}")
        zero = extra.get("zero_optimization", {})
        if not isinstance(zero, Mapping):
            raise ValueError(f"zero_optimization: must hold settings, not {zero!r}")
        if "stage" in zero:
            raise ValueError("zero_optimization.stage: is set by deepspeed.zero_stage")
        self._check_offload("offload_optimizer", zero, smallest_stage=1)
        self._check_offload("offload_param", zero, smallest_stage=3)
        return self

    def _check_offload(self, key: str, zero: Mapping[str, Any], smallest_stage: int) -> None:
        if key not in zero:
            return
        device = zero[key].get("device") if isinstance(zero[key], Mapping) else None
        if device != "cpu":
            raise ValueError(f"zero_optimization.{key}: must be {{device: cpu}}, not {zero[key]!r}")
        if self.zero_stage < smallest_stage:
            raise ValueError(
                f"zero_optimization.{key}: needs deepspeed.zero_stage {smallest_stage} or more, "
                f"not {self.zero_stage}"
            )

    @property
    def keeps_old_gradients(self) -> bool:
        """Whether a weight that a step does not touch would be given its last gradient again.

        DeepSpeed has a buffer for each gradient at stage 3 and under offloading, and clears none.
        """
        zero = (self.model_extra or {}).get("zero_optimization", {})
        return self.zero_stage == 3 or "offload_optimizer" in zero


class TrainConfig(Section):
    """One training run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output_dir: str = "runs/train"
    steps: Count = 400  # optimizer steps
    eval_every: Count = 100  # optimizer steps between evaluations; each also checkpoints
    keep_checkpoints: Count = 2
    precision: Precision = "fp32"  # of the matrix products; weights and sums are fp32 in all
    loss_limit: Positive | None = None  # a train loss (nats per token) past it is divergence
    threads: Count | None = None  # CPU threads a rank computes with; torch's default if null
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    layerdrop: LayerDropConfig = LayerDropConfig()
    optim: OptimConfig = OptimConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> TrainConfig:
        if self.layerdrop.start_layer > self.model.layers:
            raise ValueError(
                f"layerdrop.start_layer: {self.layerdrop.start_layer} is past the last of "
                f"{self.model.layers} layers"
            )
        if self.data.batch_size % self.optim.accumulation:
            raise ValueError(
                f"data.batch_size: {self.data.batch_size} sequences cannot be cut into "
                f"optim.accumulation {self.optim.accumulation} equal micro steps"
            )
        if self.model.compile and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "model.compile: does not go with deepspeed.zero_stage 3, whose hooks inside each "
                "block are compiled again at every step; use deepspeed.zero_stage 2"
            )
        return self

    def check_ranks(self, ranks: int) -> None:
        """Raise ConfigError unless `ranks` ranks can share this config's batch equally."""
        if self.data.batch_size % (ranks * self.optim.accumulation):
            raise ConfigError(
                f"data.batch_size: {self.data.batch_size} sequences cannot be shared by {ranks} "
                f"ranks x {self.optim.accumulation} micro steps (optim.accumulation); "
                f"use a multiple of {ranks * self.optim.accumulation}"
            )

    def to_yaml(self) -> str:
        """The resolved config as a YAML document that loads to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def resolve(document: Mapping[str, Any], source: str) -> TrainConfig:
    """`document` with the defaults filled in. Raises ConfigError naming `source`."""
    return validated(TrainConfig, document, source)


def load(path: str | Path, assignments: Sequence[str] = ()) -> TrainConfig:
    """The train config in the YAML file `path`, with `path=value` settings over it.

    Raises ConfigError in one line for a file that cannot be read or a setting that is wrong.
    """
    document = read_document(path)
    override(document, assignments)
    return resolve(document, str(path))


def override(document: Document, assignments: Sequence[str]) -> None:
    """Set each `path=value` in the train document. Raises ConfigError for an unknown path."""
    for assignment in assignments:
        name, value = parse_assignment(assignment)
        check_path(name, name)
        set_path(document, name, value)


def check_path(path: str, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless `path` is a train setting."""
    if path.startswith("deepspeed.") or path in train_paths():
        return
    raise ConfigError(f"{what}: no such train setting{nearest(path, train_paths())}")


def check_setting(path: str, value: Any, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless the train setting `path` accepts `value`."""
    if path.startswith("deepspeed.") and path != "deepspeed.zero_stage":
        return
    check_value(TrainConfig, path, value, what)


def train_paths() -> list[str]:
    """Every train setting, as dotted paths."""
    return [path for path, _ in leaf_fields(TrainConfig)]
