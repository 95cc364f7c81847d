"""One training run, driven from evaluation to evaluation: evaluate, append, checkpoint, go on.

Everything random comes from (seed, position), so a run that was interrupted anywhere and resumed
writes, bit for bit, what it would have written. Nothing here knows who drives it: a command line
or a service.
"""

from __future__ import annotations

import gc
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

from trainer.config.train import TrainConfig
from trainer.data.batches import Batch, TrainBatches
from trainer.data.splits import load_splits
from trainer.engine.ddp import DDPEngine
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.distributed import World
from trainer.engine.memory import peak_bytes, release_freed, reset_peak
from trainer.engine.schedule import learning_rate
from trainer.measuring.convergence import to_target
from trainer.measuring.depth import front_metrics
from trainer.measuring.evaluation import Evaluator
from trainer.measuring.sensitivity import loss_rises, with_next
from trainer.model.layerdrop import make_policy
from trainer.model.transformer import DTYPES, LanguageModel
from trainer.runs.checkpoint import DepthPoint, Progress
from trainer.runs.identity import Identity
from trainer.runs.remote_folder import open_folder
from trainer.teaching.distillation import make_distiller, projection_width
from trainer.teaching.teacher import find_teacher

Kind = Literal["evaluated", "finished", "stopped", "diverged"]

ENGINES = {"deepspeed": DeepSpeedEngine, "ddp": DDPEngine}


@dataclass(frozen=True)
class StepInfo:
    """What is known of one optimizer step."""

    step: int  # steps done, this one included
    loss: float  # nats per token, mean over all ranks
    lr: float
    seconds: float


@dataclass(frozen=True)
class Report:
    """How far `advance` came, the same on every rank.

    `step` counts optimizer steps done. `metrics` are the last evaluation's, finite numbers by the
    names of `metrics.jsonl`; a run that stopped or diverged has no newer ones. `depth_front` is
    that of the last evaluation that measured one.
    """

    kind: Kind
    step: int
    metrics: dict[str, float]
    depth_front: list[DepthPoint] = field(default_factory=list)


class Run:
    """One rank's part of a training run: built from a config, resumed from its newest checkpoint.

    All ranks build it and call `advance` together, each from one thread. The metrics are

    - `valid_ppl`, per word of the text even if a word is several tokens; `evaluation_stride`, in
      tokens, if windows overlap; `test_ppl`, only at the end of a run of phase `evaluation`;
    - `train_loss`, the NLL in nats per token, and with a teacher `distillation_loss`, its term:
      means since the last evaluation; `tokens_per_second`, `step_seconds` (median) of those steps;
    - `train_seconds` of all steps of all attempts, without evaluations; `peak_memory_bytes`, the
      largest of any rank since the run was built; `parameters` of the whole model;
    - `lr` and `drop_probability` (mean over layers) of the last step; with policy `sbld`, once its
      analysis has begun, `sensitivity_layer_N`: how much the train loss rises without layer N;
    - if asked for, those of the depth front and of convergence (`measuring/depth.py` and
      `measuring/convergence.py`);
    - in fp16 `overflow_steps`, skipped because a gradient overflowed, over all attempts.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        on_step: Callable[[StepInfo], None] | None = None,
        on_evaluation_batch: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = print,
        attempt: int | None = None,
        studies: tuple[str, ...] = (),
    ) -> None:
        """`attempt` is the ledger's number of this attempt at the run; None, as late as the latest.

        `studies` has the uid of the run's study, then of those that it is a copy of.
        Raises ConfigError, StoreError, and CheckpointError if the checkpoints cannot be read.
        """
        config.check_ranks(world.ranks)
        self._config = config
        self._world = world
        self._on_step = on_step
        self._alive = on_evaluation_batch
        self._say = say
        self._attempt = attempt
        self._studies = studies
        self._stop_requested = False  # on this rank, by anyone
        self._stop_due = False  # agreed at an evaluation, which is reported first
        self._step_seconds: list[float] = []  # since the last evaluation
        with ExitStack() as closing:
            self._build(closing)
            self._closing = closing.pop_all()

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._progress.step

    def history(self) -> list[Report]:
        """What was reported at every evaluation so far, those before a resume too, oldest first."""
        fronts = self._progress.depth_fronts
        return [
            Report("evaluated", step, dict(metrics), fronts.get(str(step), []))
            for metrics in self._progress.history
            for step in [int(metrics["step"])]
        ]

    def request_stop(self) -> None:
        """Have `advance` checkpoint and return after the step in progress, on every rank.

        May be called from any thread or signal handler, on any rank.
        """
        self._stop_requested = True

    def advance(self) -> Report:
        """Train to the next evaluation, evaluate, checkpoint; the same report on every rank.

        A run that has finished reports that again; a run that was stopped goes on. A run that
        diverged cannot go on.
        """
        if self._stop_due:
            self._stop_due = False
            return self._report("stopped")
        while self.step < self._config.steps:
            loss, stop = self._train_step()
            if not self._is_sane(loss):
                return self._ended("diverged")
            if self.step % self._config.eval_every == 0 or self.step == self._config.steps:
                self._stop_due = stop and self.step < self._config.steps
                return self._evaluate()
            if stop:
                self._save()
                return self._report("stopped")
        return self._ended("finished")

    def close(self) -> None:
        """Free engine, memory and lock; this process can then build its next Run."""
        self._closing.close()

    def _build(self, closing: ExitStack) -> None:
        config, world = self._config, self._world
        reset_peak(world.device)
        _compute_with(config.threads, closing)
        splits = load_splits(config.data, test=config.tests)
        context, distillation = config.data.context, config.distillation
        self._batches = TrainBatches(
            splits.tokens("train"),
            context,
            config.data.batch_size,
            config.seed,
            aligned=distillation.enabled and distillation.top_k is not None,
        )
        teacher = find_teacher(config)
        self._model = LanguageModel(
            config.model,
            len(splits.vocabulary),
            context,
            DTYPES[config.precision],
            projection_width(config, teacher),
        )
        self._model.initialize(config.seed)
        self._parameters = self._model.own_parameters()  # before an engine shards them
        self._evaluator = Evaluator(config, world, self._model, splits, self._alive)
        distiller = None
        if teacher is not None:
            distiller = make_distiller(
                config, teacher, splits, world.device, self._say, self._alive
            )
        self._engine = ENGINES[config.engine](config, world, self._model, distiller)
        closing.callback(self._free)
        # Sums over ranks: of their mean losses, their teacher's terms and their requests to stop.
        self._agreed = torch.zeros(3, dtype=torch.float64, device=world.device)
        self._resume(closing, Identity(self._studies, splits.folder.name))

    def _resume(self, closing: ExitStack, identity: Identity) -> None:
        state: dict[str, Tensor] = {}

        def resume() -> Progress:
            self._folder = open_folder(self._config, self._attempt, self._alive, identity)
            closing.callback(self._folder.close)
            found = self._folder.resume()
            if found is None:
                return Progress()
            state.update(found[0])
            return found[1]

        self._progress = self._world.on_rank_0(resume)
        self._policy = make_policy(self._config, self._progress.sensitivity)
        if self.step > 0:
            self._engine.load_state(state)

    def _train_step(self) -> tuple[float, bool]:
        # The loss (nats per token, mean over the whole batch) and whether a rank asks to stop.
        started = time.perf_counter()
        config, step = self._config, self.step
        batch = self._batches.at(step)
        if step in config.analysed_steps():
            self._analyse(batch)
        masks = [self._policy.mask(step, micro) for micro in range(config.optim.accumulation)]
        lr = learning_rate(config.optim, config.steps, step)
        loss, taught, stop = self._agree(self._engine.step(step, batch, masks, lr))
        seconds = time.perf_counter() - started

        progress = self._progress
        progress.step += 1
        progress.train_seconds += seconds
        progress.loss_sum += loss
        progress.taught_sum += taught
        progress.loss_steps += 1
        self._step_seconds.append(seconds)
        if self._on_step is not None:
            self._on_step(StepInfo(progress.step, loss, lr, seconds))
        return loss, stop

    def _analyse(self, batch: Batch) -> None:
        config, progress = self._config, self._progress
        with self._engine.whole_weights():
            rises = loss_rises(self._model, self._world, batch.tokens, config.optim.accumulation)
        analysed = self.step - config.analysed_steps().start
        progress.sensitivity = with_next(progress.sensitivity, analysed, rises)
        self._policy = make_policy(config, progress.sensitivity)

    def _agree(self, terms: Tensor) -> tuple[float, float, bool]:
        self._agreed[:2] = terms
        self._agreed[2] = self._stop_requested
        self._world.sum(self._agreed)
        loss, taught, stops = self._agreed.tolist()
        if stops > 0:
            self._stop_requested = False
        return loss / self._world.ranks, taught / self._world.ranks, stops > 0

    def _is_sane(self, loss: float) -> bool:
        limit = self._config.loss_limit
        finite = all(map(math.isfinite, (loss, *self._progress.sensitivity)))
        return finite and (limit is None or loss <= limit) and self._engine.can_go_on

    def _evaluate(self) -> Report:
        last = self.step == self._config.steps
        with self._engine.whole_weights():
            valid_ppl, front = self._evaluator.measure(
                front=last or self._config.evaluation.depths_at == "each"
            )
            test_ppl = self._evaluator.test() if last and self._config.tests else None
        found = [valid_ppl, test_ppl, *(point["valid_ppl"] for point in front)]
        if not all(math.isfinite(ppl) for ppl in found if ppl is not None):
            return self._ended("diverged")
        self._progress.depth_front = front
        if front:
            self._progress.depth_fronts[str(self.step)] = front
        peak = self._world.largest(peak_bytes(self._world.device))
        metrics = self._world.on_rank_0(lambda: self._record(valid_ppl, test_ppl, peak))
        self._progress.history.append(metrics)
        self._progress.forget_losses()
        self._step_seconds.clear()
        self._save()
        return self._ended("finished") if last else self._report("evaluated")

    def _record(
        self, valid_ppl: float, test_ppl: float | None, peak_memory_bytes: float
    ) -> dict[str, float]:
        config, last = self._config, self.step - 1
        tokens = config.data.batch_size * config.data.context * len(self._step_seconds)
        metrics = {
            "step": self.step,
            "valid_ppl": valid_ppl,
            "train_loss": self._progress.loss_sum / self._progress.loss_steps,
            "lr": learning_rate(config.optim, config.steps, last),
            "drop_probability": self._policy.mean_probability(last),
            "tokens_per_second": tokens / sum(self._step_seconds),
            "step_seconds": statistics.median(self._step_seconds),
            "train_seconds": self._progress.train_seconds,
            "peak_memory_bytes": peak_memory_bytes,
            "parameters": self._parameters,
            **{
                f"sensitivity_layer_{layer}": rise
                for layer, rise in enumerate(self._progress.sensitivity, start=1)
            },
            **self._engine.counts(),
        }
        if test_ppl is not None:
            metrics["test_ppl"] = test_ppl
        if config.distillation.enabled:
            metrics["distillation_loss"] = self._progress.taught_sum / self._progress.loss_steps
        evaluation = config.evaluation
        metrics |= to_target([*self._progress.history, metrics], evaluation.target_ppl)
        metrics |= front_metrics(self._progress.depth_front, evaluation.reference)
        if evaluation.stride is not None:
            metrics["evaluation_stride"] = evaluation.stride
        self._folder.append_metrics(metrics)
        return metrics

    def _save(self) -> None:
        state = self._engine.state()
        self._world.on_rank_0(lambda: self._folder.save(state, self._progress))

    def _ended(self, kind: Kind) -> Report:
        report = self._report(kind)
        result: dict[str, object] = {**report.metrics, "kind": kind, "step": report.step}
        result["versions"] = _versions()
        if report.depth_front:
            result["depth_front"] = report.depth_front
        self._world.on_rank_0(lambda: self._folder.write_result(result))
        return report

    def _report(self, kind: Kind) -> Report:
        history, front = self._progress.history, self._progress.depth_front
        return Report(kind, self.step, dict(history[-1]) if history else {}, front)

    def _free(self) -> None:
        self._engine.close()
        del self._engine, self._evaluator, self._model
        gc.collect()
        release_freed(self._world.device)


def _compute_with(threads: int | None, closing: ExitStack) -> None:
    # Denormals slow a CPU down several times as training goes on. Both settings are per thread.
    torch.set_flush_denormal(True)
    closing.callback(torch.set_flush_denormal, False)
    if threads is not None:
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)


def _versions() -> dict[str, str]:
    packages = ("layerdrop-hpo", "torch", "deepspeed")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
