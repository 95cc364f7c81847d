"""The peak memory of one run, in a process that may have trained others before it.

Nothing here knows a run; the code that builds and closes a run calls these functions.
"""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path

import torch

_RESET_PEAK = "5"  # proc(5), clear_refs


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far. If the system does not allow that, the process' whole peak counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def release_freed(device: torch.device) -> None:
    """Give freed memory back to the system, so that the next run does not count it as its own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)


def peak_bytes(device: torch.device) -> int:
    """Most bytes held at once since `reset_peak`: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
