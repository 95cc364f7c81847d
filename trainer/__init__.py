"""One language-model training job, usable alone: `python -m trainer CONFIG`.

Its `hpo` is the package beside it, which then finds the others, whatever file `hpo.py` is in the
folder where somebody types.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _import_hpo() -> None:
    spec = PathFinder.find_spec("hpo", [str(Path(__file__).parents[1])])
    assert spec is not None, "they are installed together"
    assert spec.loader is not None, "it is a package with code"
    sys.modules["hpo"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)


if "hpo" not in sys.modules:
    _import_hpo()
