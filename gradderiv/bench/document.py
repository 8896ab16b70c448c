"""What the JSON of every benchmark begins with."""

from __future__ import annotations

import json
import platform
from typing import Any

from gradderiv.checks.report import SCHEMA_VERSION, versions


def as_json(**figures: Any) -> str:
    """The figures of a benchmark after the versions and the machine that they were obtained with."""
    document = {"schema_version": SCHEMA_VERSION, **versions(), "machine": platform.machine(), **figures}
    return json.dumps(document, indent=1, ensure_ascii=False)
