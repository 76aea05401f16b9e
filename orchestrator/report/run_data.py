"""What the report reads of one run: the run directory's files, already loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["RunData"]


@dataclass(frozen=True, eq=False)
class RunData:
    """One run, as its files hold it.

    Attributes:
        name: what the run is called; untrusted text, as are all names below.
        config: `config.yaml`.
        space: `space.json`: `layers`, `left_out` and `fingerprints`.
        result: `result.json`; None while the run has no answer yet.
        evaluations: one row per scored candidate (`evaluations/*.parquet`); may be empty, without columns even.
        state: `search_state.json`; None where there is none.
    """

    name: str
    config: Mapping[str, Any]
    space: Mapping[str, Any]
    result: Mapping[str, Any] | None
    evaluations: pd.DataFrame
    state: Mapping[str, Any] | None = None
