"""The train config: every setting of one training run, its type, unit and bounds.

Precedence: the defaults below, then the file, then `path=value` from the command line. This
module imports no torch, so that a study is validated before any worker starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from trainer.settings import (
    ConfigError,
    Document,
    Section,
    check_value,
    get_path,
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
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class DataConfig(Section):
    """What to train on, and how it is cut into batches."""

    name: Literal["pydocs", "ptb", "wikitext-2", "wikitext-103", "text"] = "pydocs"
    dir: str | None = (
        None  # folder holding ptb/, wikitext-2/ ...; else HPO_DATA_DIR, else the cache
    )
    train: str | None = None  # with name: text, three paths
    valid: str | None = None
    test: str | None = None
    tokenizer: Literal["words", "bpe"] = "words"
    vocabulary_size: Annotated[int, Field(ge=258, le=1_000_000)] = 8192  # tokens of bpe
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


Points = tuple[tuple[Fraction, Probability], ...]


def _in_order(points: Points) -> Points:
    fractions = [fraction for fraction, _ in points]
    if not points or fractions != sorted(set(fractions)):
        raise ValueError(
            f"must be [fraction of the run's steps, p], one or more, each fraction larger than "
            f"the one before, not {[list(point) for point in points]}"
        )
    return points


class LayerDropConfig(Section):
    """The drop policy: each layer's probability of being skipped at a step."""

    policy: Literal["none", "static", "linear", "cosine", "piecewise", "pld", "sbld"] = "none"
    p_init: Probability = 0.2  # of sbld: the mean over the layers, once it has risen
    p_final: Probability = 0.05
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the run's steps
    decay_steps: Count | None = None  # an absolute length, instead of decay_fraction
    start_layer: Count = 1  # layers count from 1; those before are never skipped
    # by layer: its largest drop probability, in any policy
    caps: dict[Count, Probability] = Field(default_factory=dict)
    # piecewise: [fraction of the run's steps, p], straight lines between them
    points: Annotated[Points, AfterValidator(_in_order)] = ((0.0, 0.2), (1.0, 0.05))
    # pld: the share of layers kept in the end, were they all as deep as the last
    theta_bar: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    gamma: Positive | None = None  # pld: how fast it gets there, per step; 100 / steps if null
    # sbld: no layer is dropped until this fraction of the run's steps, nor in the `analysis_steps`
    # after it, which measure sensitivities at layers + 1 forward passes each. A model that has
    # learned little yet is ordered wrongly.
    analysis_start_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    analysis_steps: Count = 8
    ramp_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # sbld: of the steps, to rise in


class DistillationConfig(Section):
    """What a student learns from a frozen teacher, beside the text: alpha * CE + beta * term."""

    enabled: bool = False
    teacher: str | None = None  # a run folder, or a train config (YAML) that is trained first
    kind: Literal["logits", "features"] = "logits"
    alpha: NonNegative = 0.7  # of the cross-entropy
    beta: NonNegative = 0.3  # of the teacher's term
    temperature: Positive = 1.0  # of teacher and student, kind: logits
    beta_warmup_steps: Annotated[int, Field(ge=0)] = 0  # beta rises linearly from 0
    top_k: Count | None = None  # cached: the teacher's k best tokens and a tail; null: it runs live
    cache_limit_bytes: Count = 20_000_000_000  # a larger cache of top_k is refused

    @model_validator(mode="after")
    def _teacher_is_named(self) -> DistillationConfig:
        if self.enabled and self.teacher is None:
            raise ValueError("teacher: enabled needs one; give a run folder or a train config")
        if self.kind == "features" and self.top_k is not None:
            raise ValueError("top_k: only goes with kind: logits; hidden states are not cached")
        return self


class OptimConfig(Section):
    """The optimizer, with a linear warm-up and a decay."""

    name: Literal["adamw", "lamb", "lion", "muon"] = "adamw"  # lamb and muon not under ZeRO
    lr: Positive = 5e-4
    weight_decay: NonNegative = 0.01
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    momentum: Probability = 0.95  # of the matrices that muon moves; the rest has betas
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


class DDPConfig(Section):
    """What ranks send each other under `engine: ddp`."""

    # Gradient matrices go as two factors of this rank (PowerSGD) once the warm-up is over; whole
    # if null. A slow link wants 1 to 4.
    powersgd_rank: Count | None = None


class DepthReference(Section):
    """The corner that `depth_front_hypervolume` is measured from, worse than what counts."""

    depth: Annotated[int, Field(ge=2)]  # layers; more than the model has
    ppl: Annotated[float, Field(gt=1.0, allow_inf_nan=False)]  # valid perplexity


class EvaluationConfig(Section):
    """How valid is measured, and what beside the perplexity of the whole model."""

    stride: Count | None = None  # tokens from window to window; null: data.context, no overlap
    depths: tuple[Count, ...] = ()  # layers of each sub-model that is measured too
    depth_search: Literal["every_other", "greedy", "both"] = "both"  # which layers those keep
    depths_at: Literal["end", "each"] = "end"  # at the last evaluation, or at each of them
    reference: DepthReference | None = None  # of depth_front_hypervolume
    target_ppl: Positive | None = None  # valid perplexity to tell the steps and seconds to

    def check_layers(self, layers: int) -> None:
        """Raise ValueError unless a model of `layers` layers has all these depths."""
        if max(self.depths, default=0) > layers:
            raise ValueError(
                f"evaluation.depths: {max(self.depths)} is more than the model's {layers} layers"
            )
        if self.reference is not None and self.reference.depth <= layers:
            raise ValueError(
                f"evaluation.reference.depth: {self.reference.depth} leaves out the whole model "
                f"of {layers} layers; use {layers + 1} or more"
            )


class TrainConfig(Section):
    """One training run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output_dir: str = "runs/train"
    steps: Count = 400  # optimizer steps
    eval_every: Count = 100  # optimizer steps between evaluations; each also checkpoints
    keep_checkpoints: Count = 2
    precision: Precision = "fp32"  # of the matrix products; weights and sums are fp32 in all
    engine: Literal["deepspeed", "ddp"] = "deepspeed"  # ddp: plain PyTorch, to compare against
    loss_limit: Positive | None = None  # a train loss (nats per token) past it is divergence
    threads: Count | None = None  # CPU threads a rank computes with; torch's default if null
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    layerdrop: LayerDropConfig = LayerDropConfig()
    distillation: DistillationConfig = DistillationConfig()
    optim: OptimConfig = OptimConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    ddp: DDPConfig = DDPConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> TrainConfig:
        if self.layerdrop.start_layer > self.model.layers:
            raise ValueError(
                f"layerdrop.start_layer: {self.layerdrop.start_layer} is past the last of "
                f"{self.model.layers} layers"
            )
        too_deep = [layer for layer in self.layerdrop.caps if layer > self.model.layers]
        if too_deep:
            raise ValueError(
                f"layerdrop.caps: {too_deep[0]} is past the last of {self.model.layers} layers"
            )
        if self.analysed_steps().stop > self.steps:
            raise ValueError(
                f"layerdrop.analysis_steps: {self.layerdrop.analysis_steps} steps from step "
                f"{self.analysed_steps().start} on end after the run's {self.steps}"
            )
        if (self.evaluation.stride or 0) > self.data.context:
            raise ValueError(
                f"evaluation.stride: {self.evaluation.stride} is past data.context "
                f"{self.data.context}, and would skip tokens"
            )
        if self.data.batch_size % self.optim.accumulation:
            raise ValueError(
                f"data.batch_size: {self.data.batch_size} sequences cannot be cut into "
                f"optim.accumulation {self.optim.accumulation} equal micro steps"
            )
        self.evaluation.check_layers(self.model.layers)
        return self

    @model_validator(mode="after")
    def _engine_has_its_own(self) -> TrainConfig:
        if self.engine == "ddp":
            for key in self.deepspeed.model_extra or {}:
                raise ValueError(f"deepspeed.{key}: goes with engine: deepspeed, not engine: ddp")
            return self
        if self.ddp.powersgd_rank is not None:
            raise ValueError("ddp.powersgd_rank: goes with engine: ddp, not engine: deepspeed")
        if self.optim.name in ("lamb", "muon") and self.deepspeed.zero_stage > 0:
            # One scales, the other orthogonalizes, whole matrices; on pieces they run, wrongly.
            raise ValueError(
                f"optim.name: {self.optim.name} needs whole matrices, and deepspeed.zero_stage "
                f"{self.deepspeed.zero_stage} gives each rank flat pieces of them; use "
                "deepspeed.zero_stage: 0, or engine: ddp"
            )
        if self.model.compile and self.deepspeed.zero_stage == 3:
            raise ValueError(
                "model.compile: does not go with deepspeed.zero_stage 3, whose hooks inside each "
                "block are compiled again at every step; use deepspeed.zero_stage 2"
            )
        return self

    def check_ranks(self, ranks: int) -> None:
        """Raise ConfigError unless `ranks` ranks can train this config, sharing batches equally."""
        if self.ddp.powersgd_rank is not None and ranks == 1:
            raise ConfigError(
                f"ddp.powersgd_rank: {self.ddp.powersgd_rank} compresses what ranks send each "
                "other, and there is one; train on two or more, or leave it out"
            )
        if self.data.batch_size % (ranks * self.optim.accumulation):
            raise ConfigError(
                f"data.batch_size: {self.data.batch_size} sequences cannot be shared by {ranks} "
                f"ranks x {self.optim.accumulation} micro steps (optim.accumulation); "
                f"use a multiple of {ranks * self.optim.accumulation}"
            )

    def analysed_steps(self) -> range:
        """The 0-based optimizer steps at which `sbld` measures sensitivities; else none."""
        if self.layerdrop.policy != "sbld":
            return range(0)
        first = round(self.layerdrop.analysis_start_fraction * self.steps)
        return range(first, first + self.layerdrop.analysis_steps)

    def to_yaml(self) -> str:
        """The resolved config as a YAML document that loads to an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def resolve(document: Mapping[str, Any], source: str) -> TrainConfig:
    """`document` with the defaults filled in. Raises ConfigError naming `source`."""
    return validated(TrainConfig, document, source)


def load(path: str | Path, assignments: Sequence[str] = ()) -> TrainConfig:
    """The train config in the YAML file `path`, with `path=value` settings over it.

    A teacher's path is relative to the file that names it. Raises ConfigError in one line for a
    file that cannot be read or a setting that is wrong.
    """
    document = read_document(path)
    anchor_teacher(document, Path(path).parent)
    override(document, assignments)
    return resolve(document, str(path))


def override(document: Document, assignments: Sequence[str]) -> None:
    """Set each `path=value` in the train document. Raises ConfigError for an unknown path."""
    for assignment in assignments:
        name, value = parse_assignment(assignment)
        check_path(name, name)
        set_path(document, name, value)
    anchor_teacher(document, Path())


def anchor_teacher(document: Document, folder: Path) -> None:
    """Make the teacher's path in a train document, which is relative to `folder`, absolute."""
    named = get_path(document, "distillation.teacher")
    if isinstance(named, str):
        set_path(document, "distillation.teacher", absolute(named, folder))


def absolute(path: str, folder: Path) -> str:
    """The path that `path`, relative to `folder`, or from a home folder, stands for."""
    return os.path.abspath(folder / os.path.expanduser(path))


def absolute_data(data: DataConfig) -> DataConfig:
    """`data` with absolute paths: a worker's working folder is not the user's."""
    given = {name: getattr(data, name) for name in ("dir", "train", "valid", "test")}
    return data.model_copy(
        update={name: os.path.abspath(path) for name, path in given.items() if path is not None}
    )


def is_section(path: str) -> bool:
    """Whether `path` names a section of train settings."""
    return any(setting.startswith(f"{path}.") for setting in train_paths())


def check_path(path: str, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless `path` is a train setting."""
    if path.startswith(("deepspeed.", "layerdrop.caps.")) or path in train_paths():
        return
    raise ConfigError(f"{what}: no such train setting{nearest(path, train_paths())}")


def check_setting(path: str, value: Any, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless the train setting `path` accepts `value`."""
    if path.startswith("deepspeed.") and path != "deepspeed.zero_stage":
        return
    section, _, key = path.rpartition(".")
    if section == "layerdrop.caps":
        path, value = section, {key: value}
    check_value(TrainConfig, path, value, what)


def train_paths() -> list[str]:
    """Every train setting, as dotted paths."""
    return [path for path, _ in leaf_fields(TrainConfig)]
