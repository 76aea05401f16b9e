"""Finishing: from a search's answer to its result, while the evaluators go on with other searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from orchestrator.course import Course
from orchestrator.provenance import provenance
from orchestrator.report import build_report
from orchestrator.result import Effort, build_result, compressed_network, safetensors_bytes
from orchestrator.searches.closed_loop import ClosedLoop
from search_spaces.errors import ConfigError, RankRayError, RunInterruptedError
from search_spaces.schemes.contract import Factors

__all__ = ["Finishing"]


class Finishing:
    """Makes results one by one in a thread of its own: judging a network on the test data may take minutes.

    A context manager; on leaving it, all results are there.

    Args:
        factors: by layer name.
        ended: called with a search's name and its result or error, in the thread that uses this.
    """

    def __init__(
        self, factors: Mapping[str, Factors], ended: Callable[[str, dict[str, Any] | RankRayError], None]
    ) -> None:
        self._factors, self._ended = factors, ended
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="result")
        self._started: dict[str, Future[dict[str, Any]]] = {}

    def __enter__(self) -> Finishing:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        stopped = kind is not None and (issubclass(kind, RunInterruptedError) or not issubclass(kind, RankRayError))
        try:
            self._executor.shutdown(cancel_futures=stopped)
        finally:  # Ctrl-C while it waits; what is running must not outlive the cluster, whose memory it reads
            self._executor.shutdown(cancel_futures=True)
        self._hand_out()

    def take(self, course: Course, error: RankRayError | None) -> None:
        """Takes a search that has ended: with an answer, or with an error."""
        if error is not None:
            self._ended(course.name, error)
        else:
            effort = Effort(
                evaluations=len(course.held),
                in_bfloat16=sum(precision == "bfloat16" for _, precision in course.held),
                taken_over=course.log.taken_over,
                stopped=len(course.stopped - course.held),
                skipped=course.search.skipped,
                seconds=course.seconds,
            )
            self._started[course.name] = self._executor.submit(_finish, course, effort, self._factors)
        self._hand_out()

    def _hand_out(self) -> None:
        """Passes on the results that are there."""
        for name, result in list(self._started.items()):
            if not result.done() or result.cancelled():
                continue
            del self._started[name]
            try:
                end: dict[str, Any] | RankRayError = result.result()
            except RankRayError as error:
                end = error
            self._ended(name, end)


def _finish(course: Course, effort: Effort, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Writes the compressed network, the result, which makes the run finished, and the report.

    Raises:
        ConfigError: nothing that could be the answer could be scored.
        RunStoppedError: they cannot be written.
    """
    prepared, answer = course.prepared, course.search.best
    if answer is None:
        raise ConfigError("model", "nothing that could be the answer could be scored; see `reason` in evaluations/")
    network = compressed_network(prepared, answer, factors)
    latency = course.search.record(answer.ranks) if isinstance(course.search, ClosedLoop) else None
    result = build_result(prepared, answer, network, effort, provenance(prepared.fingerprints), latency)
    course.run.storage.write("model.safetensors", safetensors_bytes(prepared, answer, network))
    course.run.write_result(result)
    course.run.storage.write("report.html", build_report([course.run.data()]).encode())
    return result
