"""Reading the tables that a case prints."""

from __future__ import annotations

import re


def rows(text: str, start: str) -> list[list[str]]:
    """The cells of the table below the line that begins with ``start``."""
    lines = iter(text.splitlines())
    next(line for line in lines if " ".join(line.split()).startswith(start))
    table = []
    for line in lines:
        if not line.strip():
            break
        table.append(re.split(r"\s{2,}", line.strip()))
    return table
