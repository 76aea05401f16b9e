"""The evaluation log: a row per candidate, kept the moment it is scored, never scored again.

A candidate whose scoring was stopped early has a row, too, but no score: whoever asks for it again has it scored again.

Rows go to a journal first (`evaluations/journal.jsonl`, one line each, appended), and at the end of a level, once the
shared weights were found untouched, to a Parquet file of their own. Where files cannot be appended to (object
stores) every few seconds of rows become a Parquet file.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.storage import Storage
from search_spaces.candidates import Candidate, Score
from search_spaces.errors import ConfigError
from search_spaces.rank_space import RankSpace, rank_vector_from

__all__ = ["SCHEMA", "EvaluationLog", "read_evaluations", "scores_in"]

_RANKS = pa.list_(pa.int32())

SCHEMA = pa.schema(
    {
        "search": pa.string(),
        "level": pa.int32(),
        "parent": _RANKS,
        "changed": pa.string(),
        "ranks": _RANKS,
        "compression": pa.float64(),
        "compression_parameters": pa.float64(),
        "compression_macs": pa.float64(),
        "compression_volume": pa.float64(),
        "accuracy": pa.float64(),
        "loss": pa.float64(),
        "kl": pa.float64(),
        "seconds": pa.float64(),
        "worker": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "taken_over": pa.bool_(),
        "precision": pa.string(),
    }
)
"""Columns of `evaluations/*.parquet`, and one such as `compression_latency@orin` for every latency that is limited.
Rank lists are aligned to the layers of `space.json`, null is dense; `compression` is that of the budget's first cost;
`changed` is a layer's name; `taken_over` says that another search on the same evaluators had the candidate scored;
`precision` is that of the passes it was scored by (null, of older runs, is float32).
Ranks are numbers, or, where a run has ranks of more than one number, lists of them."""

_JOURNAL = "evaluations/journal.jsonl"
_REMOTE_FLUSH_S = 5.0

Row = dict[str, Any]


class EvaluationLog:
    """Records scores in a run directory.

    Args:
        storage: the run directory.
        space: for compressions and layer names.
        cost: the budget's first cost.

    Attributes:
        taken_over: scores in the whole run that other searches had asked for before.
    """

    def __init__(self, storage: Storage, space: RankSpace, cost: str) -> None:
        self._storage, self._space, self._cost = storage, space, cost
        self._nested = any(not isinstance(rank, int) for layer in space.layers for rank in layer.ladder or ())
        self._parts = 1 + max(map(_number, storage.names("evaluations")), default=-1)
        self._rows: list[Row] = []
        self.taken_over = 0
        self._unchecked: list[str] = []  # Parquet files written since the last flush from outside
        self._last_flush = time.monotonic()

    def recover(self) -> list[Score]:
        """The scores of a former process, each rank vector once in a precision; its journal becomes a Parquet file.

        Candidates that were stopped are among them: for counting, not for telling a search.
        """
        rows = _read_journal(self._storage)
        if rows:
            self._write_part(rows)
        if self._storage.exists(_JOURNAL):
            # Also without a whole row: what is appended to a torn line is lost with it.
            self._storage.write(_JOURNAL, b"")
        frame = read_evaluations(self._storage)
        self.taken_over = int((frame["taken_over"] & (frame["status"] != "stopped")).sum())
        return scores_in(frame)

    def follow(self, space: RankSpace) -> None:
        """From now on, records the compression in this space's costs: a latency is one once it was measured."""
        self._space = space

    def record(self, scored: Sequence[tuple[Candidate, Score]], *, taken_over: bool = False) -> None:
        """Keeps scores; when it returns they outlive the process (where files can be appended to).

        Args:
            taken_over: another search had them scored.

        Raises:
            RunStoppedError: they cannot be written.
        """
        rows = [{**self._row(candidate, score), "taken_over": taken_over} for candidate, score in scored]
        self._rows += rows
        self.taken_over += sum(taken_over and not score.stopped for _, score in scored)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        appended = not rows or self._storage.append(_JOURNAL, lines.encode())
        if not appended and time.monotonic() - self._last_flush > _REMOTE_FLUSH_S:
            self._unchecked.append(self._write_part(self._rows))
            self._rows = []
            self._last_flush = time.monotonic()

    def flush(self) -> None:
        """Turns what was recorded since the last flush into a Parquet file; to be called when the weights are sound.

        The journal is emptied after the file is there: a crash in between leaves rows twice, reading counts them once.
        """
        self._last_flush = time.monotonic()
        self._unchecked = []
        if not self._rows:
            return
        self._write_part(self._rows)
        self._rows = []
        if self._storage.local is not None:
            self._storage.write(_JOURNAL, b"")

    def set_aside(self) -> None:
        """Takes what was recorded since the last flush out of the run: its scores cannot be trusted."""
        if self._storage.exists(_JOURNAL):
            self._storage.rename(_JOURNAL, f"evaluations/distrusted-{self._parts:06d}.jsonl")
            self._parts += 1  # a number is used once
        for part in self._unchecked:
            self._storage.rename(part, part.replace("part-", "distrusted-").removesuffix(".parquet"))
        self._rows, self._unchecked = [], []

    def _write_part(self, rows: list[Row]) -> str:
        """Writes rows to a Parquet file of their own; returns its name."""
        name = f"evaluations/part-{self._parts:06d}.parquet"
        buffer = io.BytesIO()
        pq.write_table(_table(rows, self._nested), buffer, compression="zstd")
        self._storage.write(name, buffer.getvalue())
        self._parts += 1
        return name

    def _row(self, candidate: Candidate, score: Score) -> Row:
        space, ranks = self._space, candidate.ranks
        compression = {f"compression_{name}": space.compression(name, ranks) for name in space.costs}
        return {
            "search": candidate.search,
            "level": candidate.level,
            "parent": None if candidate.parent is None else list(candidate.parent),
            "changed": None if candidate.changed is None else space.layers[candidate.changed].name,
            "ranks": list(ranks),
            "compression": compression[f"compression_{self._cost}"],
            **compression,
            **{name: score.values.get(name) for name in ("accuracy", "loss", "kl")},
            "seconds": score.seconds,
            "worker": score.worker,
            "status": score.status,
            "reason": score.reason,
            "precision": score.precision,
        }


def read_evaluations(storage: Storage) -> pd.DataFrame:
    """Every recorded row in the order of recording, each rank vector once in a precision.

    That is its score, also where it was once stopped.

    Raises:
        ConfigError: a Parquet file that cannot be read (named).
    """
    tables = []
    for name in storage.names("evaluations"):
        if not name.endswith(".parquet"):
            continue
        try:
            tables.append(pq.read_table(io.BytesIO(storage.read(f"evaluations/{name}"))))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{storage.location}/evaluations/{name}", f"is no readable Parquet file: {reason}"
            ) from None
    journal = _read_journal(storage)
    nested = any(map(_has_lists, journal)) or any(table.schema.field("ranks").type != _RANKS for table in tables)
    if nested:  # files of before, or of others, may still have plain numbers
        tables = [_table(table.to_pylist(), True) for table in tables]
    tables.append(_table(journal, nested))  # also without a row: it has every column, files of older runs may not
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    # Older pandas turns a list with nulls into floats with NaN: tuples of whole numbers and None serve everybody.
    frame["ranks"] = frame["ranks"].map(rank_vector_from)
    frame["parent"] = frame["parent"].map(lambda value: None if value is None else rank_vector_from(value))
    frame["taken_over"] = frame["taken_over"].eq(True)  # null in older runs
    frame["precision"] = frame["precision"].fillna("float32")
    scored_first = frame.sort_values("status", key=lambda status: status == "stopped", kind="stable")
    return scored_first.drop_duplicates(["ranks", "precision"]).sort_index().reset_index(drop=True)


def scores_in(frame: pd.DataFrame) -> list[Score]:
    """The scores of rows as `read_evaluations` returns them."""
    return [_score(row) for row in frame.to_dict("records")]


def _read_journal(storage: Storage) -> list[Row]:
    """The journal's rows; a last line that a crash cut short is left out: its candidate will be scored again."""
    if not storage.exists(_JOURNAL):
        return []
    rows = []
    for line in storage.read(_JOURNAL).decode(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _table(rows: list[Row], nested: bool) -> pa.Table:
    """Rows as a table.

    Args:
        nested: whether every rank is a list: so it is in a run whose ranks may be more than a number, also where some
            rows have none such (the dense network's), because a column has one type in all files.
    """
    measured = dict.fromkeys(name for row in rows for name in row if name.startswith("compression_latency@"))
    schema = pa.schema([*SCHEMA, *(pa.field(name, pa.float64()) for name in measured)])
    if not (nested or any(map(_has_lists, rows))):
        return pa.Table.from_pylist(rows, schema)
    for name in ("parent", "ranks"):
        schema = schema.set(schema.get_field_index(name), pa.field(name, pa.list_(_RANKS)))
    return pa.Table.from_pylist([{**row, **_as_lists(row)} for row in rows], schema)


def _has_lists(row: Row) -> bool:
    return any(not isinstance(rank, int | None) for rank in (*row["ranks"], *(row["parent"] or ())))


def _as_lists(row: Row) -> Row:
    """The rank vectors of a row with a list for every rank."""
    return {
        name: None
        if row[name] is None
        else [[rank] if isinstance(rank, int) else rank if rank is None else list(rank) for rank in row[name]]
        for name in ("parent", "ranks")
    }


def _number(name: str) -> int:
    """The number in `part-000007.parquet` or `distrusted-000007`; -1 where there is none."""
    match = re.match(r"(?:part|distrusted)-(\d+)", name)
    return int(match.group(1)) if match else -1


def _score(row: dict[Any, Any]) -> Score:
    # Of a scored candidate every value is there: what pandas shows as missing is a NaN that the user's metric gave.
    values = {name: float(row[name]) for name in ("accuracy", "loss", "kl")} if row["status"] == "ok" else {}
    return Score(
        row["ranks"],
        values,
        float(row["seconds"]),
        row["worker"],
        row["status"],
        row["reason"],
        precision=row["precision"],
    )
