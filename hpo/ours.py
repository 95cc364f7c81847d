"""Our packages are found before a file `trainer.py` or `storage.py` where somebody types.

`hpo/__init__.py` calls `find_ours_first`, so that it holds from the first import of `hpo` on. This
is the one thing that an import changes in the process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

OURS = ("hpo", "storage", "trainer")  # the packages of this program
ROOT = Path(__file__).parents[1]  # the folder that they are in


class _Ours:
    """An entry of `sys.meta_path`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in OURS else None


def find_ours_first() -> None:
    """Have our names find our packages. Raises ImportError if one has found something else."""
    for name in sys.modules.keys() & {*OURS}:
        file = sys.modules[name].__file__
        if file is None or not ROOT.samefile(Path(file).parents[1]):
            raise ImportError(
                f"hpo: the module {name} is {file}, and hpo has a package of that name: rename "
                "yours"
            )
    if _Ours not in sys.meta_path:
        sys.meta_path.insert(0, _Ours)
