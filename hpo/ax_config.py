"""The study file's settings of the Ax sampler; they are read without importing Ax."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.settings import Section


class AxConfig(Section):
    """Ax's Bayesian optimization, its suggestions made ahead of their trials."""

    name: Literal["ax"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    startup_trials: Annotated[int, Field(ge=2)] = 10  # complete trials before it models
