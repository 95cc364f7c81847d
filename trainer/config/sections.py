"""The sections of a train config: each setting's type, unit and bounds.

`trainer/config/train.py` checks what two sections must agree on. This imports no torch either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from trainer.config.settings import Section

Probability = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**53)]  # the database keeps no larger number exactly
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Precision = Literal["fp32", "bf16", "fp16"]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class DataConfig(Section):
    """What to train on, and how it is cut into batches."""

    # the data set; text: files of yours
    name: Literal["pydocs", "ptb", "wikitext-2", "wikitext-103", "text"] = "pydocs"
    dir: str | None = (
        None  # folder holding ptb/, wikitext-2/ ...; else HPO_DATA_DIR, else the cache
    )
    train: str | None = None  # with name: text, the path of the train text
    valid: str | None = None  # with name: text, the path of the valid text
    # with name: text, the path of the text that only `hpo evaluate` reads; trials never learn it
    test: str | None = None
    tokenizer: Literal["words", "bpe"] = "words"  # whole words, or byte pairs learned from train
    vocabulary_size: Annotated[int, Field(ge=258, le=1_000_000)] = 8192  # number of tokens of bpe
    context: Count = 64  # tokens in a sequence
    batch_size: Count = 16  # sequences in an optimizer step, over all ranks and micro steps

    @model_validator(mode="after")
    def _text_has_paths(self) -> DataConfig:
        for split in ("train", "valid", "test"):
            given = getattr(self, split) is not None
            if given and self.name != "text":
                raise ValueError(f"{split}: a path goes with name: text, not name: {self.name}")
            if not given and self.name == "text" and split != "test":
                raise ValueError(f"{split}: name: text needs a path to the {split} text")
        return self


class ModelConfig(Section):
    """A decoder-only, pre-LN Transformer with tied embeddings."""

    layers: Count = 4  # blocks
    d_model: Count = 64  # width of the residual stream
    heads: Count = 4  # attention heads; d_model must be a multiple of them
    d_ff: Count = 256  # width inside the feed-forward half of a block
    dropout: Probability = 0.1  # of embeddings and of each half of a block
    activation_checkpointing: bool = False  # recompute each block in backward, to save memory
    compile: bool = False  # torch.compile each block: a minute at the start, faster steps

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelConfig:
        if self.d_model % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide d_model {self.d_model}")
        return self


Points = tuple[tuple[Fraction, float], ...]


def _in_order(points: Points) -> Points:
    fractions = [fraction for fraction, _ in points]
    if not points or fractions != sorted(set(fractions)):
        raise ValueError(
            f"must be [fraction of the run's steps, value], one or more, each fraction larger than "
            f"the one before, not {[list(point) for point in points]}"
        )
    return points


class LayerDropConfig(Section):
    """The drop policy: each layer's probability of being skipped at a step."""

    # how the probability goes over the run: docs/training.md
    policy: Literal["none", "static", "linear", "cosine", "piecewise", "pld", "sbld"] = "none"
    p_init: Probability = 0.2  # where it starts; sbld: the layers' mean, after the rise
    p_final: Probability = 0.05  # linear and cosine: where it ends
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the run's steps
    decay_steps: Count | None = None  # an absolute length, instead of decay_fraction
    start_layer: Count = 1  # layers count from 1; those before are never skipped
    # by layer: its largest drop probability, in any policy
    caps: dict[Count, Probability] = Field(default_factory=dict)
    # piecewise: [fraction of the run's steps, p], straight lines between them
    points: Annotated[tuple[tuple[Fraction, Probability], ...], AfterValidator(_in_order)] = (
        (0.0, 0.2),
        (1.0, 0.05),
    )
    # pld: the share of layers that would be kept in the end if all were as deep as the last
    theta_bar: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    gamma: Positive | None = None  # pld: how fast it gets there, per step; 100 / steps if null
    # sbld: no layer is dropped until this fraction of the run's steps, nor in the `analysis_steps`
    # after it, which measure sensitivities at layers + 1 forward passes each. In a model
    # that has learned little yet the order would be wrong.
    analysis_start_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    analysis_steps: Count = 8  # sbld: optimizer steps that measure
    # sbld: the fraction of the run's steps in which the probabilities rise
    ramp_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


class DistillationConfig(Section):
    """What a student learns from a frozen teacher, beside the text: alpha * CE + beta * term."""

    enabled: bool = False  # whether there is a teacher
    teacher: str | None = None  # a run folder, or a train config (YAML) that is trained first
    kind: Literal["logits", "features"] = "logits"  # next-token probabilities, or hidden states
    alpha: NonNegative = 0.7  # weight of the cross-entropy
    beta: NonNegative = 0.3  # weight of the teacher's term
    temperature: Positive = 1.0  # kind: logits, for teacher and student
    beta_warmup_steps: Annotated[int, Field(ge=0)] = 0  # beta rises linearly from 0
    # cache the teacher's k best tokens, and all others as one; null: the teacher runs live
    top_k: Count | None = None
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
    lr: Positive = 5e-4  # the largest learning rate, after the warm-up
    weight_decay: NonNegative = 0.01  # decoupled, of every weight
    # decay of the running means of gradients and of their squares
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    momentum: Probability = 0.95  # muon: of its matrices; all other weights use betas
    warmup_steps: Annotated[int, Field(ge=0)] = 40  # optimizer steps from 0 to lr, linearly
    schedule: Literal["constant", "cosine", "piecewise"] = "cosine"  # after the warm-up
    lr_final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0  # of lr, at the last step
    # piecewise: [fraction of the run's steps, lr], straight lines between them, instead of lr
    points: Annotated[tuple[tuple[Fraction, Positive], ...], AfterValidator(_in_order)] | None = (
        None
    )
    grad_clip: NonNegative = 1.0  # largest global gradient norm; 0 clips nothing
    accumulation: Count = 1  # micro steps in an optimizer step

    @model_validator(mode="after")
    def _piecewise_has_points(self) -> OptimConfig:
        if self.schedule == "piecewise" and self.points is None:
            raise ValueError("points: schedule: piecewise needs [fraction of the run's steps, lr]")
        return self


# DeepSpeed's keys that a train config sets through a setting of its own.
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
    """`zero_stage`; any other key is passed to DeepSpeed as it is."""

    model_config = ConfigDict(extra="allow", frozen=True)

    # what is divided among ranks: 1 the optimizer's state, 2 gradients too, 3 weights too
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
        """Whether a weight that a step does not touch would get its last gradient again.

        At stage 3 and under offloading DeepSpeed has a buffer for each gradient, and clears none.
        """
        zero = (self.model_extra or {}).get("zero_optimization", {})
        return self.zero_stage == 3 or "offload_optimizer" in zero


class DDPConfig(Section):
    """What ranks send each other under `engine: ddp`."""

    # Once the warm-up is over, gradient matrices are sent as two factors of this rank (PowerSGD);
    # null: they are sent whole. 1 to 4 suit a slow link.
    powersgd_rank: Count | None = None


class DepthReference(Section):
    """The corner from which `depth_front_hypervolume` is measured; only better models count."""

    depth: Annotated[int, Field(ge=2)]  # layers; more than the model has
    ppl: Annotated[float, Field(gt=1.0, allow_inf_nan=False)]  # valid perplexity


class EvaluationConfig(Section):
    """How the valid split is measured, and what beside the perplexity of the whole model."""

    stride: Count | None = None  # tokens from window to window; null: data.context, no overlap
    depths: tuple[Count, ...] = ()  # layers of each sub-model that is measured too
    depth_search: Literal["every_other", "greedy", "both"] = "both"  # how their layers are chosen
    depths_at: Literal["end", "each"] = "end"  # at the last evaluation, or at each of them
    reference: DepthReference | None = None  # of depth_front_hypervolume
    target_ppl: Positive | None = None  # report the steps and seconds to this valid perplexity

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


class ForkConfig(Section):
    """Where a run begins, if not at step 0: at a checkpoint of another run."""

    run: str  # that run's folder
    step: Count  # optimizer steps that it had done
