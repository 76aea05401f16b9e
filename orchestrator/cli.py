"""The command line. A user's mistake is one line and exit status 2; a defect of ours keeps its traceback."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from search_spaces.errors import ConfigError, RankRayError, RunStoppedError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Finds the ranks at which a trained network should be factorised, on Ray.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see examples/.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set search.seed=3")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Run directory or URI.")]


def main() -> None:
    """Entry point of `rankray`."""
    try:
        status = app(standalone_mode=False)
    except RankRayError as error:
        print(f"rankray: {error}", file=sys.stderr)
        status = error.exit_status
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("rankray: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


@app.command()
def demo(
    run_dir: Annotated[
        str | None, typer.Option(help="Where the run is kept; default: a new folder below runs/.")
    ] = None,
) -> None:
    """The whole road in about a minute: train a small network on digits, search with mBS, report."""
    from orchestrator.demo import run_demo

    run_demo(run_dir, Console())


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """What a search would do: layers, costs, candidates, seconds."""
    from orchestrator.config.loading import read_config
    from orchestrator.plan import make_plan, show_plan
    from orchestrator.preparation import prepare

    prepared = prepare(read_config(config, overrides or ()))
    show_plan(prepared, make_plan(prepared), Console())


@app.command()
def search(
    config: ConfigPath,
    run_dir: Annotated[
        str | None, typer.Option(help="Path or URI (s3://...); default: a new folder below runs/.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """One search; Ctrl-C leaves a run that `rankray resume` goes on with."""
    from orchestrator import api
    from orchestrator.progress import show_progress

    console = Console()
    location = run_dir or api.new_run_location(config.stem)
    with show_progress(console) as observer:
        run = api.search(config, location, overrides or (), observer)
    _show_result(run, console)


@app.command()
def compare(
    config: ConfigPath,
    run_dir: Annotated[
        str | None, typer.Option(help="Path or URI (s3://...); default: a new folder below runs/.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """All searches of the config's `compare` block under all its budgets; `rankray resume` goes on with it."""
    from orchestrator import api
    from orchestrator.progress import show_progress

    console = Console()
    location = run_dir or api.new_run_location(config.stem)
    with show_progress(console) as observer:
        comparison = api.compare(config, location, overrides or (), observer)
    _show_comparison(comparison, console)


@app.command()
def sweep(
    config: ConfigPath,
    run_dir: Annotated[
        str | None, typer.Option(help="Path or URI (s3://...); default: a new folder below runs/.")
    ] = None,
    more: Annotated[
        int | None, typer.Option(help="Add so many trials to the sweep by Optuna that lies in --run-dir.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Many trainings: methods x budgets x seeds, or what Optuna proposes; `rankray resume` goes on with it."""
    from orchestrator import api
    from orchestrator.progress import show_progress

    console = Console()
    location = run_dir or (None if more is not None else api.new_run_location(config.stem))
    with show_progress(console) as observer:
        done = api.sweep(config, location, overrides or (), observer, more=more)
    _show_sweep(done, console)


@app.command()
def resume(run: RunPath) -> None:
    """Go on where a run, a comparison or a sweep was stopped; the result is what it would have been."""
    from orchestrator import api
    from orchestrator.comparison.directory import ComparisonDirectory
    from orchestrator.progress import show_progress
    from orchestrator.sweeps.directory import SweepDirectory

    console = Console()
    if SweepDirectory.lies_at(run):
        with show_progress(console) as observer:
            sweep = api.resume_sweep(run, observer)
        _show_sweep(sweep, console)
        return
    if ComparisonDirectory.lies_at(run):
        with show_progress(console) as observer:
            comparison = api.resume_comparison(run, observer)
        _show_comparison(comparison, console)
        return
    with show_progress(console) as observer:
        finished = api.resume(run, observer)
    _show_result(finished, console)


@app.command()
def devices(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file with `devices:`; without it, this machine.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """What can be timed now, and whether it is fit to be."""
    from orchestrator import api
    from orchestrator.hardware.console import show_devices

    show_devices(api.devices(config, overrides or ()), Console())


@app.command()
def measure(
    config: ConfigPath,
    run_dir: Annotated[
        str | None, typer.Option(help="Path or URI (s3://...); default: a new folder below runs/.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Measure 5 % of what is known again, and compare.")] = False,
    overrides: Overrides = None,
) -> None:
    """Fills the latency table with what it lacks of the config's layers, on all its devices at once."""
    from orchestrator import api
    from orchestrator.hardware.console import show_measured, watch_measuring

    console = Console()
    with watch_measuring(console) as watcher:
        measured = api.measure(config, run_dir, overrides or (), watcher, check=check)
    show_measured(measured, console)
    if measured.unmeasured:
        raise RunStoppedError(f"{measured.unmeasured:,} workloads were not measured; the same command goes on")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run directories or URIs.")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file; default: report.html in the run, or comparison.html for several.")
    ] = None,
) -> None:
    """A self-contained HTML page of one run, or comparing several."""
    from orchestrator.report import build_report
    from orchestrator.run_directory import RunDirectory
    from orchestrator.storage import Storage

    opened = [RunDirectory.open(run) for run in runs]
    page = build_report([run.data() for run in opened]).encode()
    if output is None and len(opened) == 1:
        opened[0].storage.write("report.html", page)
        written = f"{opened[0].location}/report.html"
    else:
        path = output or Path("comparison.html")
        try:
            Storage(str(path.parent), "--output").write(path.name, page)
        except RunStoppedError as error:
            raise ConfigError("--output", f"{path} cannot be written: {error.__cause__}") from None
        written = str(path)
    Console().print(f"wrote {written}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run: RunPath,
    format: Annotated[str, typer.Option("--format", help="safetensors, torch-export or onnx.")] = "torch-export",
    output: Annotated[Path | None, typer.Option(help="File; default: named after the run.")] = None,
    trial: Annotated[str | None, typer.Option(help="Which trial, where RUN is a sweep.")] = None,
) -> None:
    """The compressed network for others; torch-export and onnx run without RankRay."""
    from orchestrator.export import export_run, export_trial

    written = export_run(run, format, output) if trial is None else export_trial(run, trial, format, output)
    Console().print(f"wrote {written}", highlight=False, soft_wrap=True)


def _show_result(run: Any, console: Console) -> None:
    """The result in a few lines."""
    for line in _result_lines(run.result):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"run directory: {run.location} (report.html, result.json, model.safetensors)", soft_wrap=True)


def _show_comparison(comparison: Any, console: Console) -> None:
    """The table; failed runs make the command fail, once everything is shown.

    Raises:
        RunStoppedError: runs failed.
    """
    from orchestrator.comparison.console import show_table

    table, location = comparison.table, comparison.location
    show_table(table, console)
    console.print(f"comparison: {location} (comparison.html, comparison.parquet)", highlight=False, soft_wrap=True)
    failed = int((table["status"] == "failed").sum())
    if failed:
        raise RunStoppedError(f"{failed} of {len(table)} runs failed; `rankray resume {location}` tries them again")


def _show_sweep(sweep: Any, console: Console) -> None:
    """The table; trials that were lost make the command fail, once everything is shown.

    Raises:
        RunStoppedError: trials were lost with their workers.
    """
    from orchestrator.sweeps.console import show_trials

    table, location = sweep.table, sweep.location
    show_trials(table, console)
    console.print(f"sweep: {location} (sweep.html, trials.parquet)", highlight=False, soft_wrap=True)
    lost = int(table["reason"].str.startswith("lost: ").sum())
    if lost:
        what = "trials, or devices that time their networks, were lost"
        raise RunStoppedError(f"{lost} of {len(table)} {what}; `rankray resume {location}` tries again")


def _how_scored(result: Mapping[str, Any]) -> str:
    """In which precision, and how many were not."""
    rough = result.get("in_bfloat16", 0)
    again = f" ({rough:,} in bfloat16, the best {result['evaluations'] - rough:,} again in float32)" if rough else ""
    stopped = f", {result['stopped']:,} stopped early" if result.get("stopped") else ""
    skipped = f", {result['skipped']:,} skipped by screening" if result.get("skipped") else ""
    return f"{again}{stopped}{skipped}," if stopped or skipped else again


def _latency_line(device: str, entry: Mapping[str, Any]) -> str:
    measured = entry["measured_ms"]
    taken = "not measured" if measured is None else f"{measured:.4g} ms measured"
    return (
        f"{device}: {taken} (predicted {entry['predicted_ms']:.4g} ms), of at most {entry['limit_ms']:.4g} ms; "
        f"dense {entry['dense_ms']:.4g} ms"
    )


def _result_lines(result: dict[str, Any]) -> Sequence[str]:
    scored = f"{result['evaluations']:,} candidates scored{_how_scored(result)}"
    lines = [
        f"{scored} in {result['seconds']:,.1f} s by {result['search']}",
        *(
            f"{name}: C(r) = {cost['compression']:.4f} ({cost['dense']:,.0f} -> {cost['compressed']:,.0f})"
            for name, cost in result["costs"].items()
            if "@" not in name
        ),
        *(_latency_line(device, entry) for device, entry in result.get("latency", {}).items()),
    ]
    for split in ("validation", "test"):
        dense, compressed = (result["scores"][which].get(split) for which in ("dense", "compressed"))
        if dense and compressed:
            lines.append(
                f"{split}: accuracy {dense['accuracy']:.4f} -> {compressed['accuracy']:.4f}, "
                f"loss {dense['loss']:.4f} -> {compressed['loss']:.4f}"
            )
    if not result["in_window"] and result.get("latency"):
        lines.append("no network was measured to be within all limits; this one came closest")
    elif not result["in_window"]:
        lines.append("no rank vector of the search lies in the window [C_d - tolerance, C_d]; this one came closest")
    return lines
