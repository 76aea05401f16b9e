"""Searches on sliced and fitted layers from config to the network that is handed over."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

from orchestrator import api, cli, search_run
from orchestrator.config.loading import check_config
from orchestrator.export import export_run
from orchestrator.local_step import factorising, learn_here
from orchestrator.preparation import Prepared, prepare
from orchestrator.ray_cluster import Cluster
from orchestrator.searches.registry import search_methods
from search_spaces.assembly import assemble
from search_spaces.costs import rank_space
from search_spaces.schemes.contract import Factors
from tests.orchestrator.digits_run import digits_config
from tests.orchestrator.test_local_step import allocating_config
from workers.batch import run_model
from workers.digits import digits
from workers.factoriser import factorise
from workers.import_path import import_object
from workers.moments import second_moments
from workers.scorer import judge

BEAM = {"moves": [1], "exchanges": 4, "rounds": 1}

FITTED = {"last_stage": "fitted", "bias": "corrected"}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "alds": ("alds", {"scheme": "sliced_svd", **FITTED, "batch_norm": "reestimated"}),
    "beam": ("beam_around", {"scheme": "sliced_svd", "norm": "activation", **FITTED, **BEAM}),
    "tucker": ("layerwise", {"scheme": "tucker2", "last_stage": "fitted", "ratios": 2, "allocations": 2}),
    "spatial": ("uniform", {"scheme": "spatial_svd", "norm": "activation", "last_stage": "fitted"}),
    "two limits": ("alds", {"scheme": "sliced_svd", "budget": {"parameters": 0.5, "macs": 0.4}}),
}


def mbs_config(checkpoint: Path) -> dict[str, Any]:
    """A beam search on sliced layers, in few levels."""
    settings = [{"step": 40, "beam_size": 2}]
    raw = digits_config(checkpoint, scheme="sliced_svd", last_stage="fitted", settings=settings, tolerance=0.05)
    raw["data"]["calibration_size"] = 96
    return raw


def config_of(name: str, checkpoint: Path) -> dict[str, Any]:
    method, search = RUNS.get(name, ("", {}))
    raw = mbs_config(checkpoint) if name == "mbs" else allocating_config(checkpoint, method, **search)
    raw["cluster"] = {"evaluators": 1}  # a process takes seconds to start, these candidates none to score
    return raw


@pytest.fixture(scope="module")
def finished(
    ray_cluster: Cluster, digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], api.Run]:
    """Runs, each once."""
    folder, runs = tmp_path_factory.mktemp("runs"), dict[str, api.Run]()

    def run(name: str) -> api.Run:
        if name not in runs:
            runs[name] = api.search(config_of(name, digits_checkpoint), folder / name.replace(" ", "-"))
        return runs[name]

    return run


def result_of(run: api.Run) -> dict[str, Any]:
    assert run.result is not None
    return dict(run.result)


def validation_scores(run: api.Run) -> dict[str, float]:
    """What the network that is handed over scores on the validation batch, in one plain forward pass."""
    prepared = prepare(run.config)
    network = api.load_compressed(run.location)
    with torch.inference_mode():
        outputs = run_model(network, prepared.validation.inputs)
        values = judge(outputs, prepared.validation, import_object(run.config.metric, "metric"), None)
    assert values is not None
    return values


@pytest.mark.parametrize("name", [*RUNS, "mbs"])
class TestEveryRun:
    def test_is_within_its_budget(self, finished: Callable[[str], api.Run], name: str) -> None:
        result = result_of(finished(name))
        assert result["in_window"]
        for cost, wanted in result["budget"].items():
            reached = result["costs"][cost]["compression"]
            assert reached >= wanted - (0.05 if name == "mbs" else 1e-12)

    def test_hands_over_the_network_that_it_scored(self, finished: Callable[[str], api.Run], name: str) -> None:
        run = finished(name)
        result, values = result_of(run), validation_scores(run)
        said = result["scores"]["compressed"]["validation"]
        assert values["accuracy"] == said["accuracy"]
        assert values["loss"] == pytest.approx(said["loss"], rel=1e-5)
        weights = [
            m.weight for m in api.load_compressed(run.location).modules() if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        assert sum(weight.numel() for weight in weights) == result["costs"]["parameters"]["compressed"]

    def test_recorded_the_answer_as_it_scored_it(self, finished: Callable[[str], api.Run], name: str) -> None:
        run = finished(name)
        result = result_of(run)
        rows = run.evaluations
        ranks = tuple(tuple(rank) if isinstance(rank, list) else rank for rank in result["ranks"].values())
        (row,) = [row for row in rows.to_dict("records") if row["ranks"] == ranks]
        assert row["status"] == "ok"
        ends = rows["status"].value_counts().to_dict()
        assert ends.pop("ok") == result["evaluations"]
        assert ends.pop("stopped", 0) == result["stopped"]
        assert not ends
        if result["batch_norm"] == "stored":  # otherwise candidates have the statistics of the validation batch
            assert row["loss"] == pytest.approx(result["scores"]["compressed"]["validation"]["loss"], rel=1e-4)

    def test_ranks_in_parquet_are_those_in_space_json(self, finished: Callable[[str], api.Run], name: str) -> None:
        run = finished(name)
        parts = [pd.read_parquet(part) for part in sorted(Path(run.location).glob("evaluations/*.parquet"))]
        layers = run.space["layers"]
        for part in parts:
            for row in part["ranks"]:
                assert len(row) == len(layers)
                for rank, layer in zip(row, layers, strict=True):
                    if "ladder" in layer and rank is not None:
                        assert list(rank) in layer["ladder"]
        sliced = any(isinstance(rank, tuple) for ranks in run.evaluations["ranks"] for rank in ranks)
        assert sliced == ("ladder" in layers[0])

    def test_has_a_report(self, finished: Callable[[str], api.Run], name: str) -> None:
        page = (Path(finished(name).location) / "report.html").read_text()
        assert "<html" in page
        assert "conv5" in page


class TestStoppedRuns:
    """Without its result, as a kill just before it is written leaves it, or with some of its scores alone."""

    @staticmethod
    def stopped(run: api.Run, folder: Path, rows: int, *, with_state: bool) -> Path:
        """A copy of a run that was stopped after so many scores, all in the journal."""
        shutil.copytree(run.location, folder)
        (folder / "result.json").unlink()
        frame = api.load_run(run.location).evaluations
        for part in folder.glob("evaluations/*.parquet"):
            part.unlink()
        # What pandas has as NaN was null.
        kept = frame.head(rows).astype(object).where(frame.head(rows).notna(), None)
        journal = "".join(json.dumps(row) + "\n" for row in kept.to_dict("records"))
        (folder / "evaluations/journal.jsonl").write_text(journal)
        if not with_state:
            (folder / "search_state.json").unlink(missing_ok=True)
        return folder

    @pytest.mark.parametrize("name", ["beam", "tucker", "mbs"])
    def test_end_with_the_same_answer(self, finished: Callable[[str], api.Run], tmp_path: Path, name: str) -> None:
        run = finished(name)
        rows = len(run.evaluations)
        resumed = api.resume(self.stopped(run, tmp_path / "cut", (rows + 1) // 2, with_state=False))
        before, after = result_of(run), result_of(resumed)
        for key in ("ranks", "costs", "scores", "evaluations", "search", "note"):
            assert after[key] == before[key], key
        assert set(resumed.evaluations["ranks"]) == set(run.evaluations["ranks"])

    def test_need_not_score_anything_again(self, finished: Callable[[str], api.Run], tmp_path: Path) -> None:
        run = finished("beam")
        folder = self.stopped(run, tmp_path / "cut", len(run.evaluations), with_state=True)
        resumed = api.resume(folder)
        assert result_of(resumed)["ranks"] == result_of(run)["ranks"]
        assert len(pd.concat(map(pd.read_parquet, folder.glob("evaluations/*.parquet")))) == len(run.evaluations)

    def test_of_before_biases_were_corrected_go_on(self, finished: Callable[[str], api.Run], tmp_path: Path) -> None:
        """Their config has no such key; factors are as they were."""
        run = finished("tucker")
        folder = self.stopped(run, tmp_path / "cut", 2, with_state=False)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["search"].pop("bias") == "kept"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        resumed = api.resume(folder)
        assert result_of(resumed)["scores"] == result_of(run)["scores"]
        result = result_of(run)
        del result["bias"]
        (folder / "result.json").write_text(json.dumps(result))
        before, after = (api.load_compressed(where).state_dict() for where in (run.location, folder))
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["alds", "beam"])
def test_corrected_biases_keep_every_layer_s_mean_output(finished: Callable[[str], api.Run], name: str) -> None:
    """In the network that is loaded, given what the dense network's layers see of the calibration images."""
    run = finished(name)
    prepared, network = prepare(run.config), api.load_compressed(run.location)
    assert result_of(run)["bias"] == "corrected"
    assert prepared.calibration is not None
    for layer in prepared.found.layers:
        dense, cascade = prepared.model.get_submodule(layer.name), network.get_submodule(layer.name)
        seen: list[torch.Tensor] = []
        handle = dense.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            run_model(prepared.model, prepared.calibration.inputs)
            expected, found = (module(seen[0]).double().transpose(0, 1).flatten(1) for module in (dense, cascade))
        handle.remove()
        assert cascade is not dense
        torch.testing.assert_close(found.mean(1), expected.mean(1), rtol=0, atol=1e-5 * float(expected.abs().max()))


class TestALDS:
    def test_says_what_it_did(self, finished: Callable[[str], api.Run]) -> None:
        result = result_of(finished("alds"))
        assert result["method"] == "alds"
        said = {key: result[key] for key in ("norm", "last_stage", "bias", "batch_norm")}
        assert said == {"norm": "weight", "last_stage": "fitted", "bias": "corrected", "batch_norm": "reestimated"}
        assert result["search"].startswith("alds ")
        assert result["note"]["proven"] is True

    def test_batch_norms_have_new_statistics(self, finished: Callable[[str], api.Run], digits_checkpoint: Path) -> None:
        from safetensors.torch import load_file

        dense = load_file(digits_checkpoint)
        network = api.load_compressed(finished("alds").location).state_dict()
        changed = [name for name in network if "running_" in name and not torch.equal(network[name], dense[name])]
        assert len(changed) == 10

    def test_two_limits_hold_together(self, finished: Callable[[str], api.Run]) -> None:
        costs = result_of(finished("two limits"))["costs"]
        assert costs["parameters"]["compression"] >= 0.5
        assert costs["macs"]["compression"] >= 0.4


def test_a_sliced_network_runs_in_onnx_runtime(finished: Callable[[str], api.Run], tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript"):
        pytest.importorskip(needed)
    onnxruntime = pytest.importorskip("onnxruntime")
    run = finished("beam")
    network = api.load_compressed(run.location)
    assert any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules()), "nothing is sliced"
    path = export_run(run.location, "onnx", tmp_path / "network.onnx")
    images = prepare(run.config).validation.inputs
    assert isinstance(images, torch.Tensor)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(outputs, network(images).numpy(), rtol=1e-4, atol=1e-4)


class Constant(Dataset[tuple[torch.Tensor, int]]):
    """Grey images."""

    labels = None

    def __len__(self) -> int:
        return 300

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 8, 8), 0.5), number % 10


class NaNBeyondTheValidation(Constant):
    """Digits; every image but those of the validation batch has a pixel that is no number.

    Labels are told, so the same 64 images are drawn as from the digits themselves.
    """

    def __init__(self) -> None:
        self.source = digits("train")
        self.labels = self.source.labels
        raw = digits_config(Path("none"))["data"]
        self.kept = set(_drawn(raw["validation_size"]))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image, label = self.source[number]
        if number not in self.kept:
            image = image.clone()
            image[0, 0, 0] = float("nan")
        return image, label


def _drawn(size: int) -> list[int]:
    from workers.splits import draw_validation

    return draw_validation(digits("train"), size, 0)


class OverflowsInside(nn.Sequential):
    """Finite on the digits; a layer is given infinite numbers that no output shows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.aside = nn.Linear(32, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self[2](self[1](self[0](images)))
        ignored = torch.nan_to_num(self.aside(hidden * float("inf")), nan=0.0, posinf=0.0, neginf=0.0)
        return self[3](hidden) + 0 * ignored.sum()


HERE = "tests.orchestrator.test_allocation_runs"


class TestBadInput:
    """From the command line's door: one line, status 2, before Ray starts."""

    @pytest.fixture
    def refused(
        self,
        digits_checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Callable[..., str]:
        def started(*_: object, **__: object) -> NoReturn:
            raise AssertionError("Ray was started")

        monkeypatch.setattr(ray, "init", started)
        monkeypatch.setattr(search_run, "connect", started)

        def run(command: str, method: str, *overrides: str, **search: Any) -> str:
            path = tmp_path / "config.yaml"
            path.write_text(yaml.safe_dump(allocating_config(digits_checkpoint, method, **search)))
            place = ["--run-dir", str(tmp_path / "run")] if command == "search" else []
            monkeypatch.setattr(
                sys, "argv", ["rankray", command, str(path), *place, *(f"--set={o}" for o in overrides)]
            )
            with pytest.raises(SystemExit) as ended:
                cli.main()
            out, err = capsys.readouterr()
            assert (ended.value.code, out) == (2, ""), err
            assert re.fullmatch(r"rankray: [^\n]+\n", err), err
            return err.removeprefix("rankray: ").rstrip("\n")

        return run

    @pytest.mark.parametrize("command", ["search", "plan"])
    def test_a_validation_batch_of_one_has_no_statistics(self, refused: Callable[..., str], command: str) -> None:
        # A batch norm behind the pooling sees one number per channel.
        message = refused(
            command,
            "uniform",
            f"model.build={HERE}:normed_at_the_end",
            "model.checkpoint=null",
            "data.validation_size=1",
            batch_norm="reestimated",
        )
        assert message.startswith("data.validation_size: a batch of 1 leaves batch norm norm one value per channel; ")

    @pytest.mark.parametrize("command", ["search", "plan"])
    def test_a_calibration_batch_of_one_has_none_either(self, refused: Callable[..., str], command: str) -> None:
        message = refused(
            command,
            "uniform",
            f"model.build={HERE}:normed_at_the_end",
            "model.checkpoint=null",
            "data.calibration_size=1",
            batch_norm="reestimated",
        )
        assert message.startswith("data.calibration_size: a batch of 1 leaves batch norm norm one value per channel; ")

    def test_calibration_images_with_nan(self, refused: Callable[..., str]) -> None:
        fitted = {"norm": "activation", "last_stage": "fitted", "bias": "corrected", "batch_norm": "reestimated"}
        for search in ({key: value} for key, value in fitted.items()):
            message = refused("search", "uniform", f"data.train={{dataset: '{HERE}:NaNBeyondTheValidation'}}", **search)
            assert message == "data.train: the calibration batch has NaN or infinite values; mend these samples"

    def test_more_calibration_images_than_there_are(self, refused: Callable[..., str]) -> None:
        message = refused("search", "uniform", "data.calibration_size=5000", norm="activation")
        assert message == (
            "data.calibration_size: asks for 5000 samples, but beside the validation batch train has 1373; "
            "give at most that"
        )

    def test_a_layer_that_is_given_infinite_numbers(self, refused: Callable[..., str]) -> None:
        message = refused(
            "plan", "uniform", f"model.build={HERE}:OverflowsInside", "model.checkpoint=null", norm="activation"
        )
        assert message.startswith("model: the inputs of layer aside are NaN or infinite on the calibration batch; ")

    def test_a_budget_below_rank_1_everywhere(self, refused: Callable[..., str]) -> None:
        message = refused("search", "alds", scheme="sliced_svd", budget={"parameters": 0.9999})
        assert re.match(
            r"search\.budget\.parameters: no rank vector meets 0\.9999; the closest that can be reached is 0\.\d{4} ",
            message,
        )

    def test_a_limit_that_no_rank_lowers(self, refused: Callable[..., str]) -> None:
        message = refused("search", "alds", scheme="sliced_svd", budget={"parameters": 0.5, "volume": 0.5})
        assert message.startswith("search.budget.")
        assert "the closest that can be reached is 0.0000" in message


def normed_at_the_end() -> nn.Module:
    """A batch norm of single numbers."""
    torch.manual_seed(0)
    parts = nn.Sequential()
    parts.add_module("flat", nn.Flatten())
    parts.add_module("first", nn.Linear(64, 32))
    parts.add_module("norm", nn.BatchNorm1d(32))
    parts.add_module("last", nn.Linear(32, 10))
    return parts


class TestOddInput:
    """What is no mistake, and is fitted all the same."""

    @pytest.mark.parametrize("change", ["one image", "constant images"])
    @pytest.mark.parametrize("scheme", ["sliced_svd", "tucker2", "spatial_svd", "channel_svd"])
    def test_moments_of_low_rank(self, digits_checkpoint: Path, change: str, scheme: str) -> None:
        """Allocated, factorised and put together in this process."""
        raw = allocating_config(digits_checkpoint, "uniform", scheme=scheme, norm="activation", last_stage="fitted")
        raw["data"]["validation_size"] = 16
        if change == "one image":
            raw["data"]["calibration_size"] = 1
        else:
            raw["data"]["train"] = {"dataset": f"{HERE}:Constant"}
        case = learn_here(prepare(check_config(raw, "test")))
        method = search_methods().get("uniform", "")
        (candidate,) = method.start(case.config.search, case.problem, None).ask()
        assert case.space.compression("parameters", candidate.ranks) >= 0.5
        network = assemble(case.model, case.found.layers, case.schemes, candidate.ranks, _factors(case))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
        assert case.calibration is not None
        with torch.no_grad():
            dense, compressed = (run_model(one, case.calibration.inputs) for one in (case.model, network))
        # Few directions are seen: what the network says of these very images hardly changes.
        assert float((compressed - dense).norm() / dense.norm()) < 0.5

    def test_a_linear_layer_is_one_slice_and_a_1_x_1_has_two_stages(self) -> None:
        class Both(nn.Sequential):
            def __init__(self) -> None:
                super().__init__(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 1), nn.Flatten(), nn.Linear(16 * 36, 10))

        found: Prepared = _prepared(Both)
        sliced, spatial = (_space(found, scheme) for scheme in ("sliced_svd", "spatial_svd"))
        assert {rank[0] for rank in sliced[2].offered} == {1}  # type: ignore[index]
        assert list(spatial[1].offered) == list(range(1, 8))  # 16 x 16 at rank 8 shrinks nothing

    def test_statistics_are_taken_in_parts_of_about_one_size(self, digits_checkpoint: Path) -> None:
        raw = allocating_config(digits_checkpoint, "uniform", batch_norm="reestimated")
        for size, most, expected in ((257, None, [129, 128]), (96, None, [96]), (9, 4, [3, 3, 3]), (1, None, [1])):
            raw["data"].update(calibration_size=size, slice_size=most)
            parts = prepare(check_config(raw, "test")).calibration_parts
            assert [len(part) for part in parts] == expected


def _factors(case: Prepared) -> dict[str, Factors]:
    assert case.calibration is not None
    moments = second_moments(case.model, case.found.layers, case.calibration)
    return {
        layer.name: factorise(
            layer,
            scheme.name,
            case.model.get_submodule(layer.name).get_parameter("weight"),
            ranks.offered,
            factorising(case),
            moments[layer.name],
        )
        for layer, scheme, ranks in zip(case.found.layers, case.schemes, case.space.layers, strict=True)
    }


def _prepared(build: type[nn.Module]) -> Prepared:
    globals()["built"] = build
    raw = allocating_config(Path("none"), "uniform", budget={"parameters": 0.2})
    raw["model"] = {"build": f"{HERE}:built"}
    return prepare(check_config(raw, "test"))


def _space(found: Prepared, scheme: str) -> Any:
    from search_spaces.schemes.registry import schemes

    return rank_space(found.found, (schemes().get(scheme, ""),) * len(found.found.layers)).layers
