"""Tracking with Weights & Biases: one run for each trial, which any process continues by its id.

wandb can hang, ask, print or take over signals, all of which is prevented here. Nothing is read
back from it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpo.observers.background import BackgroundTracker
from hpo.study.tracking import WandbConfig, run_id
from trainer.config.settings import ConfigError

FINISH_SECONDS = 10.0  # the longest that the end of one run waits for its upload
FLUSH_SECONDS = 0.5  # the most that a killed controller loses of an offline run; wandb's own is 15


class WandbTracker(BackgroundTracker):
    """Writes each trial to a wandb run, which an attempt in another process continues by its id.

    A trial that begins again while its run is open goes on in it; close() finishes open runs.
    """

    name = "wandb"

    def __init__(
        self,
        config: WandbConfig,
        study: str,
        study_uid: str,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        """`study_uid` tells two studies of one name apart; wandb's files go to `folder`/wandb."""
        self._config = config
        self._study = study
        self._study_uid = study_uid
        self._folder = folder
        self._wandb: Any = None
        self._mode: str = config.mode
        self._service: Any = None
        self._runs: dict[int, Any] = {}
        super().__init__(say)

    def _begin(
        self, trial: int, attempt: int, config: Mapping[str, Any], params: Mapping[str, Any]
    ) -> None:
        if self._wandb is None:
            self._start_wandb()
        if trial not in self._runs:
            self._runs[trial] = self._wandb.init(
                project=self._config.project,
                entity=self._config.entity,
                tags=self._config.tags,
                mode=self._mode,
                group=self._study,
                name=f"{self._study}-{trial:04d}",
                id=run_id(self._study_uid, trial),
                resume="allow",
                reinit="create_new",  # several runs open at once in one process
                dir=str(self._folder),
                config={**config, "trial_params": dict(params)},
            )
        self._runs[trial].summary["attempt"] = attempt

    def _report(self, trial: int, step: int, metrics: Mapping[str, float]) -> None:
        # Without `commit`, wandb keeps a step back until the next one.
        self._runs[trial].log(dict(metrics), step=step, commit=True)

    def _end(self, trial: int, state: str, reason: str | None) -> None:
        run = self._runs.pop(trial, None)
        if run is not None:
            run.summary.update({"state": state, "reason": reason})
            run.finish(exit_code=1 if state == "FAIL" else 0)

    def _finish(self) -> None:
        for run in self._runs.values():
            run.finish()

    def _start_wandb(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # has no setting of its own
        import wandb
        from wandb.sdk.lib import wbauth

        self._folder.mkdir(parents=True, exist_ok=True)
        system_hooks = sys.exit, sys.excepthook
        session = wandb.setup(_quiet(wandb.Settings))
        sys.exit, sys.excepthook = system_hooks
        self._service = session.ensure_service()
        key = wbauth.authenticate_session(
            host=session.settings.base_url, source="hpo", prompt=False
        )
        if self._mode == "auto":
            self._mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
            if self._mode == "offline":
                self._say(
                    f"wandb has no key: its runs stay in {self._folder}/wandb; to send them: "
                    "wandb login, wandb sync"
                )
        if self._mode == "online" and key is None:  # wandb would ask for one at the terminal
            raise ConfigError("mode is online and wandb has no key; run `wandb login`")
        self._wandb = wandb

    def _abandon(self) -> None:
        """End wandb's process: at exit wandb would wait for it, for ever if it hangs."""
        unregister_at_exit = getattr(self._service, "_cleanup", None)
        process = getattr(getattr(self._service, "_proc", None), "_process", None)
        if unregister_at_exit and process:
            unregister_at_exit()
            process.kill()


def _quiet(settings: Any) -> Any:
    """Return `settings` (the class wandb.Settings) that print, capture and inspect nothing."""
    return settings(
        silent=True,
        console="off",
        finish_timeout=FINISH_SECONDS,
        stop_fn=lambda: None,  # else the stop button on wandb's page interrupts the controller
        disable_code=True,
        disable_git=True,
        save_code=False,
        label_disable=True,
        sagemaker_disable=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=FLUSH_SECONDS,
    )
