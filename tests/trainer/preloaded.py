"""Imports what a training needs; the process from which trainings are forked imports this."""

from __future__ import annotations

import importlib

from trainer.engine.distributed import load_deepspeed

load_deepspeed()
# What torch and DeepSpeed import with their first engine takes a second more.
for slow in ("torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer", "trainer.run"):
    importlib.import_module(slow)
