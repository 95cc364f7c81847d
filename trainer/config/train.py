"""The train config: all settings of one training run, how they are loaded and checked together.

Precedence: the defaults below, then the file, then `path=value` from the command line. This
module imports no torch, so that a study is validated before any worker starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.paths import absolute
from trainer.config.plain import dumped
from trainer.config.sections import (
    Count,
    DataConfig,
    DDPConfig,
    DeepSpeedConfig,
    DistillationConfig,
    EvaluationConfig,
    ForkConfig,
    LayerDropConfig,
    ModelConfig,
    OptimConfig,
    Positive,
    Precision,
)
from trainer.config.settings import (
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

# Paths of what is read
PATHS = (
    "data.dir", "data.train", "data.valid", "data.test", "distillation.teacher", "fork.run",
)  # fmt: skip


class TrainConfig(Section):
    """One training run."""

    # Whether the run reads the test split at its end: `hpo evaluate` and `hpo compare` set it.
    phase: Literal["tuning", "evaluation"] = "tuning"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # decides everything random
    output_dir: str = "runs/train"  # the run's folder, or a URL; a study sets it
    steps: Count = 400  # optimizer steps
    eval_every: Count = 100  # optimizer steps between evaluations; each also checkpoints
    keep_checkpoints: Count = 2  # how many of the newest are kept
    precision: Precision = "fp32"  # of the matrix products; weights and sums are always fp32
    engine: Literal["deepspeed", "ddp"] = "deepspeed"  # ddp: plain PyTorch, to compare against
    loss_limit: Positive | None = None  # a larger train loss (nats per token) is divergence
    threads: Count | None = None  # CPU threads a rank computes with; torch's default if null
    fork: ForkConfig | None = None  # begin at another run's checkpoint; null: at step 0
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
            # Lamb scales whole matrices, Muon orthogonalizes them; on pieces they run, but wrongly.
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

    @model_validator(mode="after")
    def _evaluation_has_a_test_text(self) -> TrainConfig:
        if self.tests and self.data.name == "text" and self.data.test is None:
            raise ValueError("data.test: an evaluation needs the path of a test text")
        return self

    @property
    def tests(self) -> bool:
        """Whether the run may read the test split."""
        return self.phase == "evaluation"

    def check_tuning(self, source: str) -> None:
        """Raise ConfigError, beginning with `source`, for a run of the evaluation phase."""
        if self.tests:
            raise ConfigError(
                f"{source}: phase: evaluation would read the test split, which only `hpo evaluate` "
                "and `hpo compare` do; leave phase out"
            )

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
        """The 0-based optimizer steps at which `sbld` measures sensitivities; empty otherwise."""
        if self.layerdrop.policy != "sbld":
            return range(0)
        first = round(self.layerdrop.analysis_start_fraction * self.steps)
        return range(first, first + self.layerdrop.analysis_steps)

    def to_yaml(self) -> str:
        """The resolved config as a YAML document that loads to an equal config."""
        return dumped(self.document())


def resolve(document: Mapping[str, Any], source: str) -> TrainConfig:
    """`document` as a TrainConfig, with defaults filled in. Raises ConfigError naming `source`."""
    return validated(TrainConfig, document, source)


def load(path: str | Path, assignments: Sequence[str] = ()) -> TrainConfig:
    """The train config in the YAML file `path`, with `path=value` settings over it.

    Paths of texts and of other runs are relative to the file that names them. Raises ConfigError in
    one line for a file that cannot be read or a setting that is wrong.
    """
    document = read_document(path)
    anchor(document, Path(path).parent)
    override(document, assignments)
    return resolve(document, str(path))


def override(document: Document, assignments: Sequence[str]) -> None:
    """Set each `path=value` in the train document. Raises ConfigError for an unknown path."""
    for assignment in assignments:
        name, value = parse_assignment(assignment)
        check_path(name, name)
        set_path(document, name, value)
    anchor(document, Path())


def anchor(document: Document, folder: Path) -> None:
    """Make the paths that a train document names, relative to `folder`, absolute."""
    for path in PATHS:
        named = get_path(document, path)
        if isinstance(named, str):
            set_path(document, path, absolute(named, path, folder))
    output = document.get("output_dir")  # what is written goes to the working folder
    if isinstance(output, str) and output.startswith("~"):
        document["output_dir"] = absolute(output, "output_dir")


def is_section(path: str) -> bool:
    """Whether `path` names a section of train settings."""
    return any(setting.startswith(f"{path}.") for setting in train_paths())


def check_path(path: str, what: str) -> None:
    """Raise ConfigError, beginning with `what`, unless users may set the train setting `path`."""
    if path == "phase":
        raise ConfigError(
            f"{what}: only `hpo evaluate` and `hpo compare` set it, and so read the test split"
        )
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


@cache
def train_paths() -> list[str]:
    """The dotted path of every train setting that users may set."""
    return [path for path, _ in leaf_fields(TrainConfig) if path != "phase"]
