"""What this process holds, and has held at most, in bytes.

The peak of a process never falls by itself; Linux can be told to forget it (``/proc/self/clear_refs``). Elsewhere nothing is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path


def forget() -> int | None:
    """Give free memory back, and let the peak begin with what is held now; that, in bytes, or None."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak()


def peak() -> int | None:
    """The most memory that this process has held, in bytes. On Linux not ``ru_maxrss``, which begins with what the parent process held."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
