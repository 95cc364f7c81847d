"""Keeps the libraries' chatter off the terminal: Ray, Tune, DeepSpeed and wandb write to a log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def chatter_to(path: Path) -> Iterator[TextIO]:
    """Send this process' output, down to its file descriptors, to the file `path`.

    Yields the stream that still reaches the person who started the program.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        kept[descriptor] = os.dup(descriptor)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger("hpo").addHandler(handler)
    try:
        with os.fdopen(os.dup(kept[1]), "w", encoding="utf-8", errors="replace") as person:
            yield person
    finally:
        logging.getLogger("hpo").removeHandler(handler)
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)
