"""Work in a process of its own, which says lines of JSON: the peak of its memory is its own, and its end is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from typing import Any


class Apart:
    """``module.child()`` in a fresh process: go through what it says, then see how it ended.

    Attributes:
        trouble: how the process ended, where that was not as it should.
    """

    def __init__(self, module: str, *arguments: object) -> None:
        code = f"from {module} import child; child()"
        self.command = [sys.executable, "-c", code, *map(str, arguments)]
        self.trouble = ""

    def __iter__(self) -> Generator[Any, None, None]:
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
            try:
                for line in process.stdout or ():
                    yield json.loads(line)
            except BaseException:
                process.kill()
                raise
        self.trouble = ended(process.returncode)


def ended(status: int) -> str:
    """In words; nothing where all went well."""
    if status == 0:
        return ""
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def say(document: Any) -> None:
    """A line to the process that asked."""
    print(json.dumps(document), flush=True)
