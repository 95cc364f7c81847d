"""What needs a GPU says so where there is none, instead of failing or measuring something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"


def test_the_gpu_benchmark_is_skipped_with_a_clear_line_where_there_is_no_gpu() -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout == "benchmarks/gpu.sh: skipped: PyTorch sees no GPU on this machine\n"
