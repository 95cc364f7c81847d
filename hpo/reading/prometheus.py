"""A study's metrics for Prometheus, read from the ledger at each scrape.

They are about all controllers of the study. Nothing is kept between scrapes, and metrics are
served on loopback only.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hpo.control.outage import LEDGER_ERRORS
from hpo.search.ranking import best_in_ledger
from hpo.study.config import StudyConfig
from hpo.study.sections import raised
from storage import Ledger, StudyRecord
from storage.tallies import tally
from trainer.config.settings import ConfigError

HOST = "127.0.0.1"


def check_port(port: int | None) -> None:
    """Raise ConfigError unless metrics can be served on `port`."""
    if port is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = str(getattr(error, "strerror", "no such port")).lower()
            raise ConfigError(f"--metrics-port {port}: {reason}; give another") from None


@contextmanager
def metrics_served(
    ledger: Ledger, record: StudyRecord, config: StudyConfig, port: int | None
) -> Iterator[None]:
    """Serve the study's metrics at /metrics while the block runs, unless `port` is None."""
    if port is None:
        yield
        return
    registry = CollectorRegistry()
    registry.register(StudyCollector(ledger, record.name, config))
    server, thread = start_http_server(port, HOST, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class StudyCollector(Collector):
    """Reads one study at each scrape."""

    def __init__(self, ledger: Ledger, study: str, config: StudyConfig) -> None:
        self._ledger = ledger
        self._study = study
        self._config = config

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, or only `hpo_ledger_up` with 0 if the ledger cannot be read."""
        reads = GaugeMetricFamily("hpo_ledger_up", "1 if the ledger could be read, else 0.")
        try:
            metrics = list(self._read())
        except LEDGER_ERRORS:
            metrics = []
        reads.add_metric([], float(bool(metrics)))
        yield from [reads, *metrics]

    def _read(self) -> Iterator[Metric]:
        record = self._ledger.study(self._study)
        found = tally(self._ledger, record)
        yield self._gauge("trials", "Trials by state.", found.trials, "state")
        attributes = self._ledger.attributes(record)
        budget = raised(self._config.budget, attributes)
        limits = {
            "trials": record.budget_trials,
            "hours": budget.hours,
            "device_hours": budget.device_hours,
        }
        yield self._gauge("budget", "The study's budget.", limits, "of")
        yield self._gauge("attempts_running", "Attempts that run.", {"": found.open_attempts})
        ended = CounterMetricFamily(
            "hpo_attempts", "Attempts that ended, by reason.", labels=["study", "reason"]
        )
        for reason, count in found.ended_attempts.items():
            ended.add_metric([self._study, reason or "finished"], count)
        yield ended
        spent = self._ledger.device_seconds(record)
        yield self._gauge("device_seconds", "Cost so far: seconds times ranks.", {"": spent})
        silent = {"": found.silent_seconds}
        yield self._gauge("silent_seconds", "Since a running attempt last reported.", silent)
        ages = {
            str(c.controller_id): c.expires_in
            for c in self._ledger.controllers(record)
            if c.state == "active"
        }
        help_text = "Until a controller's lease runs out; negative: it has, nobody renews it."
        yield self._gauge("lease_seconds", help_text, ages, "controller")
        yield self._gauge(
            "best_value", "The best feasible trial's value.", self._best(record), "metric"
        )

    def _best(self, record: StudyRecord) -> dict[str, float | None]:
        objectives, constrained = self._config.objectives, bool(self._config.constraints)
        directions = [objective.direction for objective in objectives]
        trial = best_in_ledger(self._ledger, record, directions, constrained=constrained)
        return {} if trial is None else {objectives[0].metric: trial.value}

    def _gauge(
        self, name: str, says: str, values: Mapping[str, float | None], label: str | None = None
    ) -> Metric:
        labels = ["study", label] if label else ["study"]
        gauge = GaugeMetricFamily(f"hpo_{name}", says, labels=labels)
        for key, value in values.items():
            if value is not None:
                gauge.add_metric([self._study, key] if label else [self._study], value)
        return gauge
