"""Section: what was asked, what was reached, and what it cost, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.evaluations import evaluations_of, failed, objective_of, scored
from orchestrator.report.quantities import (
    ABSENT,
    cost_label,
    count,
    difference,
    duration,
    metric,
    metric_difference,
    percent,
    plural,
    saved_what,
    saving,
)
from orchestrator.report.run_data import RunData
from orchestrator.report.section import Block, Column, Fact, Section, Table, table
from orchestrator.report.task import (
    budget_text,
    compression,
    cost_entry,
    limits,
    method_name,
    scheme_text,
    score,
    targets,
    tolerance,
)

__all__ = ["summary"]

_SPLITS = ("validation", "test")


def summary(runs: Sequence[RunData]) -> Section:
    """The run's question and answer."""
    (run,) = runs
    reached, warning = _effort(run), ""
    if run.result is None:
        warning = _unfinished(run)
    elif not run.result.get("in_window"):
        warning = _missed(run)
    else:
        reached += f" {_met(run)}"
    scores = " ".join(text for split in _SPLITS if (text := _score_sentence(run, split)))
    sentences = tuple(text for text in (_question(run), reached, scores) if text)
    blocks: list[Block] = []
    if run.result is not None:
        blocks.append(_before_and_after(run))
    if (failures := _failures(run)) is not None:
        blocks.append(failures)
    return Section("Summary", sentences, tuple(blocks), warning, _facts(run))


def _question(run: RunData) -> str:
    """What was searched, and for what budget."""
    layers, left_out = len(run.space.get("layers", [])), len(run.space.get("left_out", []))
    beside = f" ({plural(left_out, 'more layer')} left out)" if left_out else ""
    scheme = f", factorised by {scheme_text(run)}" if scheme_text(run) else ""
    window = f", with a tolerance of {percent(tolerance(run))}" if tolerance(run) else ""
    return (
        f"{method_name(run)} searched the ranks of {plural(layers, 'layer')}{beside}{scheme}. "
        f"The budget was {budget_text(run)}{window}; candidates were ranked by {objective_of(run).name}."
    )


def _effort(run: RunData) -> str:
    """How many candidates it took, and how many of them have no score."""
    rows = evaluations_of(run)
    total = int((run.result or {}).get("evaluations") or (rows["status"] != "stopped").sum())
    seconds = (run.result or {}).get("seconds")
    within = f" in {duration(seconds)}" if seconds is not None else ""
    rough = int((rows["precision"] == "bfloat16").sum())
    within += f"; {rough:,} of them in bfloat16, the best of these again in float32" if rough else ""
    skipped = int((run.result or {}).get("skipped") or 0)
    within += f"; screening left {plural(skipped, 'candidate')} unscored" if skipped else ""
    stopped = int((rows["status"] == "stopped").sum())
    within += (
        f"; {plural(stopped, 'other candidate')} could not be among the best and were stopped early" if stopped else ""
    )
    without = len(failed(run))
    tail = f"; {plural(without, 'candidate')} got no score (the reasons are below)" if without else ""
    return f"{plural(total, 'candidate')} {'was' if total == 1 else 'were'} evaluated{within}{tail}."


def _met(run: RunData) -> str:
    """That the budget was met, with the number."""
    parts = [saving(cost, compression(run, cost)) for cost, _ in limits(run) if compression(run, cost) is not None]
    search = (run.result or {}).get("search")
    by = f" The best setting was {search}." if search else ""
    return f"The budget was met: {' and '.join(parts) or 'the chosen network lies in the window'}.{by}"


def _missed(run: RunData) -> str:
    """That the window was missed, and by how much."""
    parts = []
    for cost, target in targets(run).items():
        reached = compression(run, cost)
        if reached is not None:
            low = target - tolerance(run)
            parts.append(f"{percent(low)} to {saving(cost, target)} were asked for, {percent(reached)} were reached")
    return f"The window was missed: {'; '.join(parts) or 'the chosen network does not lie in it'}."


def _unfinished(run: RunData) -> str:
    """That there is no answer yet, and how far the run is."""
    rows = scored(run)
    if rows.empty:
        return "This run is unfinished and has no scored candidate yet. “rankray resume” goes on with it."
    furthest = rows["compression"].max()
    return (
        f"This run is unfinished: there is no chosen network yet. What follows is what it has found so far, as far as "
        f"level {rows['level'].max():.0f} and a compression of {percent(furthest)}. “rankray resume” goes on with it."
    )


def _score_sentence(run: RunData, split: str) -> str:
    """Accuracy before and after on one split; empty if the result has none."""
    before, after = (score(run, network, split, "accuracy") for network in ("dense", "compressed"))
    if before is None or after is None:
        return ""
    change = metric_difference("accuracy", before, after)
    where = {"validation": "the validation data, which the search saw", "test": "the test data, which it never saw"}
    return (
        f"On {where[split]}, accuracy went from {metric('accuracy', before)} to {metric('accuracy', after)} ({change})."
    )


def _facts(run: RunData) -> tuple[Fact, ...]:
    """The four numbers one looks for first."""
    result = run.result
    if result is None:
        return ()
    facts = [
        Fact(saved_what(cost), percent(compression(run, cost)), f"asked for: {percent(target)}")
        for cost, target in list(targets(run).items())[:2]
    ]
    for split in reversed(_SPLITS):
        before, after = (score(run, network, split, "accuracy") for network in ("dense", "compressed"))
        if after is not None:
            note = f"{metric_difference('accuracy', before, after)} from dense" if before is not None else ""
            facts.append(Fact(f"{split} accuracy", metric("accuracy", after), note))
    seconds, evaluations = result.get("seconds"), result.get("evaluations")
    facts.append(Fact("search time", duration(seconds), f"{count(evaluations)} candidates"))
    return tuple(facts)


def _before_and_after(run: RunData) -> Table:
    """Scores and costs of the dense and of the chosen network."""
    rows: list[tuple[str, ...]] = []
    for split in _SPLITS:
        for name in _metrics(run, split):
            before, after = (score(run, network, split, name) for network in ("dense", "compressed"))
            title = f"{name.capitalize()}, {split}"
            rows.append((title, metric(name, before), metric(name, after), metric_difference(name, before, after)))
    for cost in (run.result or {}).get("costs") or {}:
        entry = cost_entry(run, cost)
        for part, values in (("layers searched", entry), ("whole network", entry.get("network") or {})):
            before, after = values.get("dense"), values.get("compressed")
            if before is not None or after is not None:
                title = f"{cost_label(cost)}, {part}"
                rows.append((title, count(before), count(after), difference(before, after)))
    columns = (Column("", False), Column("Dense"), Column("Compressed"), Column("Change"))
    return table("Before and after", columns, rows)


def _metrics(run: RunData, split: str) -> list[str]:
    """Names of the scores on one split, each once."""
    scores = (run.result or {}).get("scores") or {}
    return list(dict.fromkeys(name for one in scores.values() for name in (one or {}).get(split) or {}))


def _failures(run: RunData) -> Table | None:
    """Candidates without a score by status and reason; None if all have one."""
    rows = failed(run)
    if rows.empty:
        return None
    # A row that says `ok` without a finite objective has no score either.
    status = rows["status"].replace({"ok": "no finite objective", "": "unknown"})
    counted = (
        rows.assign(status=status).groupby(["status", "reason"]).size().sort_values(ascending=False, kind="stable")
    )
    lines = [(one[0], one[1] or ABSENT, count(int(amount))) for one, amount in counted.items()]  # type: ignore[index]
    columns = (Column("Status", False), Column("Reason", False), Column("Candidates"))
    return table("Candidates without a score", columns, lines, limit=12, order="the most frequent")
