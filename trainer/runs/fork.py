"""Forks: runs that begin at another run's checkpoint, with a new learning rate or drop probability.

Only settings that may change during training may differ from the parent's config. The parent's
folder is read, never written or locked: the checkpoint must stay there until the fork has started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from trainer.config.settings import ConfigError
from trainer.config.train import TrainConfig, load
from trainer.runs.checkpoint import Progress, checkpoint_at
from trainer.runs.identity import Identity, identity_in
from trainer.runs.remote import run_here

CHANGEABLE = {"optim.lr", "layerdrop.p_init"}


def fork_point(
    config: TrainConfig, free: Collection[str], identity: Identity
) -> tuple[dict[str, Tensor], Progress] | None:
    """The checkpoint at which the run of `config` begins; None if it is no fork.

    The settings in `free` may always differ. Raises ConfigError if the parent was trained on other
    texts than `identity` has, or its config differs in a setting that may not, and CheckpointError
    if its checkpoint is missing or cannot be read.
    """
    if config.fork is None:
        return None
    with run_here(config.fork.run, config.fork.step) as parent:
        identity.check_content(identity_in(parent), f"fork.run: {config.fork.run}")
        for key, before, now in changed_settings(load(parent / "config.yaml"), config, free):
            if key not in CHANGEABLE and key.partition(".")[0] != "fork":
                raise ConfigError(
                    f"fork.run: in {config.fork.run}/config.yaml {key} is {before}, and here "
                    f"{now}; a fork may only change {' and '.join(sorted(CHANGEABLE))}"
                )
        return checkpoint_at(parent / "checkpoints", config.fork.step)


def changed_settings(
    before: TrainConfig, now: TrainConfig, free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted path outside `free` whose values differ, with both values, in order."""
    yield from changed_leaves(before.document(), now.document(), free)


def changed_leaves(
    before: Mapping[str, Any], after: Mapping[str, Any], free: Collection[str]
) -> Iterator[tuple[str, Any, Any]]:
    """Do as `changed_settings`, for any two documents."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if key not in free and was != now and repr(was) != repr(now):  # nan is not equal to itself
            yield key, was, now


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
