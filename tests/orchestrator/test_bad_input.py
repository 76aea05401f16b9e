"""Bad input, from the command line's door: one line that names the key or file, exit status 2, and nothing started.

Every case starts from a config that works and changes one thing.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import safetensors.torch
import torch
import yaml
from PIL import Image

from orchestrator import api, cli, search_run
from orchestrator.config.loading import read_config
from orchestrator.preparation import prepare
from orchestrator.run_directory import RunDirectory

NETS = """
import torch
from torch import nn


def net(channels=16, classes=3):
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(channels * 36, classes),
    )


def without_layers():
    return nn.Sequential(nn.Flatten(), nn.Softmax(dim=-1))


def grouped():
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(4, 4, 1, groups=4))


class NotFinite(nn.Sequential):
    def forward(self, x):
        return super().forward(x) / 0


def not_finite():
    return NotFinite(nn.Flatten(), nn.Linear(36, 3))


class Single(nn.Sequential):
    def forward(self, x):
        return super().forward(x).sum()


def single():
    return Single(nn.Flatten(), nn.Linear(36, 3))


def metric_that_raises(outputs, batch):
    raise KeyError("no such class")


def metric_without_number(outputs, batch):
    return float("nan")


class Unlabelled:
    def __len__(self):
        return 8

    def __getitem__(self, number):
        return torch.zeros(1, 6, 6)


class FarLabels(Unlabelled):
    def __getitem__(self, number):
        return torch.zeros(1, 6, 6), 90 + number
"""


def png(number: int, size: tuple[int, int] = (6, 6)) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_images(path: Path, labels: Sequence[int | None], sizes: Sequence[tuple[int, int]] | None = None) -> Path:
    images = [png(number, size) for number, size in enumerate(sizes or [(6, 6)] * len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(images, kind), "label": pa.array(labels, pa.int64())}), path)
    return path


@pytest.fixture
def project_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its checkpoint, images, and a config that works; the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "nets_of_a_user.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "nets_of_a_user", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    from nets_of_a_user import net  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(net().state_dict(), "net.pt")
    write_images(tmp_path / "train.parquet", [0, 1, 2] * 6)
    write_images(tmp_path / "test.parquet", [0, 1, 2])
    config = {
        "model": {"build": "nets_of_a_user:net", "checkpoint": "net.pt"},
        "data": {"train": {"parquet": "train.parquet"}, "test": {"parquet": "test.parquet"}, "validation_size": 8},
        "search": {"method": "mbs", "budget": {"parameters": 0.3}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tries to start Ray, or to use the one that other tests have started, fails the test."""

    def started(*_: object, **__: object) -> NoReturn:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", started)
    monkeypatch.setattr(search_run, "connect", started)


Refused = Callable[..., str]


@pytest.fixture
def refused(
    project_of_a_user: Path,
    no_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Runs a command that must be refused; returns its one line on stderr."""

    def run(*arguments: str) -> str:
        before = sorted(one for one in project_of_a_user.rglob("*") if "__pycache__" not in one.parts)
        monkeypatch.setattr(sys, "argv", ["rankray", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        assert re.fullmatch(r"rankray: [^\n]+\n", err), f"not one line: {err}"
        assert "Traceback" not in err
        left = sorted(one for one in project_of_a_user.rglob("*") if "__pycache__" not in one.parts)
        assert left == before, "something was left behind"
        return err.removeprefix("rankray: ").rstrip("\n")

    return run


@pytest.fixture
def search(refused: Refused) -> Refused:
    """The refusal of `rankray search` with some keys changed."""

    def run(*overrides: str) -> str:
        return refused("search", "config.yaml", "--run-dir", "run", *(f"--set={one}" for one in overrides))

    return run


def test_the_config_that_all_cases_start_from_works(project_of_a_user: Path, no_ray: None) -> None:
    prepared = prepare(read_config(Path("config.yaml")))
    assert [layer.name for layer in prepared.found.layers] == ["0", "2", "5"]
    assert len(prepared.validation) == 8
    with pytest.raises(AssertionError, match="Ray was started"):
        api.search("config.yaml", "run")


class TestConfig:
    def test_unknown_key(self, search: Refused) -> None:
        assert search("search.beam_width=3").startswith(
            "search.beam_width: unknown key; known: batch_norm, bias, budget, early_stop, exclude, gamma, include, last"
        )
        assert search("search.setings=[]") == "search.setings: unknown key; did you mean 'settings'?"
        assert search("data.test.parket=x") == "data.test.parket: no key of a parquet source; did you mean 'parquet'?"

    @pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.2"])
    def test_compression_outside_0_and_1(self, search: Refused, value: str) -> None:
        message = search(f"search.budget.parameters={value}")
        assert message.startswith(f"search.budget: parameters = {value} is neither a compression C_d in (0, 1) nor ")

    @pytest.mark.parametrize("name", ["step", "beam_size"])
    def test_step_and_beam_size_below_1(self, search: Refused, name: str) -> None:
        setting = {"step": 3, "beam_size": 5, name: 0}
        message = search(f"search.settings=[{setting}]".replace("'", ""))
        assert message == f"search.settings.0.{name}: input should be greater than or equal to 1, not 0"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("search.method=mds", "search.method: unknown search method 'mds'; did you mean 'mbs'?"),
            ("search.scheme=chanel_svd", "search.scheme: unknown scheme 'chanel_svd'; did you mean 'channel_svd'?"),
            ("search.budget.params=0.5", "search.budget.params: unknown cost; did you mean 'parameters'?"),
        ],
    )
    def test_unknown_names(self, search: Refused, override: str, message: str) -> None:
        assert search(override) == message

    def test_a_config_that_is_not_there(self, refused: Refused) -> None:
        assert refused("search", "confg.yaml") == "confg.yaml: no such file; did you mean 'config.yaml'?"
        assert refused("plan", "confg.yaml") == "confg.yaml: no such file; did you mean 'config.yaml'?"

    def test_a_variable_that_is_not_set(self, search: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WEIGHTS", raising=False)
        message = search("model.checkpoint=${WEIGHTS}/net.pt")
        assert message.startswith("model.checkpoint: environment variable WEIGHTS is not set; ")


class TestCheckpoint:
    def test_missing(self, search: Refused) -> None:
        message = search("model.checkpoint=net.pth")
        assert message.startswith("model.checkpoint: net.pth cannot be opened: No such file or directory")

    @pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
    def test_truncated(self, project_of_a_user: Path, search: Refused, name: str) -> None:
        if name.endswith(".pt"):
            whole = Path("net.pt").read_bytes()
        else:
            whole = safetensors.torch.save(torch.load("net.pt", weights_only=True))
        Path(name).write_bytes(whole[: len(whole) // 2])
        message = search(f"model.checkpoint={name}")
        assert message.startswith(f"model.checkpoint: {name} is no ")
        assert "truncated" in message or "damaged" in message

    def test_of_another_architecture_names_the_keys(self, search: Refused) -> None:
        message = search("model.build=workers.models:digits_cnn")
        assert message.startswith("model.checkpoint: net.pt is of another architecture than the model; ")
        assert "missing: conv1.weight, bn1.weight, bn1.bias and " in message
        assert "6 unexpected: 0.weight, 0.bias, 2.weight and 3 more" in message

    def test_of_another_width_names_the_shapes(self, search: Refused) -> None:
        message = search("model.arguments={channels: 8}")
        assert "5 of another shape: 0.weight (16 x 1 x 3 x 3, the model has 8 x 1 x 3 x 3), " in message

    def test_with_code_in_it_is_refused_and_not_run(self, project_of_a_user: Path, search: Refused) -> None:
        torch.save({"state_dict": MakesAFile("the_code_ran")}, "code.pt")
        message = search("model.checkpoint=code.pt")
        assert message.startswith("model.checkpoint: code.pt holds ")
        assert "could run code, so it was not loaded; save the state dict alone" in message
        assert not Path("the_code_ran").exists()


class MakesAFile:
    """Unpickling it makes a file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.name,)


class TestModel:
    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("nets_of_a_usr:net", "does not import: ModuleNotFoundError: No module named 'nets_of_a_usr'"),
            ("nets_of_a_user:nett", "has no 'nett'; did you mean 'net'?"),
            ("nets_of_a_user", "is no import path; write package.module:callable"),
            ("broken:net", "broken:net does not import: ZeroDivisionError: division by zero"),
        ],
    )
    def test_that_does_not_import(self, project_of_a_user: Path, search: Refused, path: str, message: str) -> None:
        (project_of_a_user / "broken.py").write_text("1 / 0\n")
        found = search(f"model.build={path}")
        assert found.startswith("model.build: ")
        assert message in found

    def test_that_cannot_be_built(self, search: Refused) -> None:
        message = search("model.arguments={width: 8}")
        assert message.startswith("model.build: nets_of_a_user:net(width=8) raised TypeError: ")

    def test_without_a_compressible_layer(self, search: Refused) -> None:
        message = search("model={build: 'nets_of_a_user:without_layers'}")
        assert message == "model: no layer can be factorised (it has no Conv2d and no Linear)"

    def test_whose_outputs_are_not_finite(self, search: Refused) -> None:
        message = search("model={build: 'nets_of_a_user:not_finite'}")
        assert message == "model: the dense network's outputs are not finite on the validation batch"

    def test_whose_output_is_one_number(self, search: Refused) -> None:
        message = search("model={build: 'nets_of_a_user:single'}")
        assert message == "model: its output for one sample has the shape (), not (1, classes)"

    def test_unknown_layer_pattern(self, search: Refused) -> None:
        assert search("search.include=[conv*]") == (
            "search.include: pattern 'conv*' matches no convolution or linear layer; known: 0, 2, 5"
        )
        assert search("search.exclude=['7']").startswith("search.exclude: pattern '7' matches no convolution or ")

    def test_patterns_that_leave_nothing(self, search: Refused) -> None:
        message = search("search.exclude=['*']")
        assert message.startswith("model: no layer can be factorised (0: search.exclude has '*'; 2: ")


class TestMetric:
    def test_that_does_not_import(self, search: Refused) -> None:
        message = search("metric=nets_of_a_user:metric_that_raise")
        assert message.startswith("metric: ")
        assert message.endswith("did you mean 'metric_that_raises'?")

    def test_that_raises(self, search: Refused) -> None:
        message = search("metric=nets_of_a_user:metric_that_raises")
        assert message == (
            "metric: nets_of_a_user:metric_that_raises raised KeyError: 'no such class'; "
            "give a function of (outputs, batch)"
        )

    def test_that_gives_no_number(self, search: Refused) -> None:
        message = search("metric=nets_of_a_user:metric_without_number")
        assert message == "metric: nets_of_a_user:metric_without_number gives NaN for the dense network"


class TestData:
    def test_that_is_not_there(self, search: Refused) -> None:
        message = search("data.train.parquet=tain.parquet")
        assert message.startswith("data.train.parquet: no file matches 'tain.parquet'")

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_without_labels(self, project_of_a_user: Path, search: Refused, split: str) -> None:
        pq.write_table(pq.read_table("train.parquet").drop_columns("label"), "unlabelled.parquet")
        message = search(f"data.{split}.parquet=unlabelled.parquet")
        assert message.startswith(f"data.{split}: unlabelled.parquet has no label column (label, labels, fine_label), ")

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_whose_samples_have_no_labels(self, search: Refused, split: str) -> None:
        message = search(f"data.{split}={{dataset: 'nets_of_a_user:Unlabelled'}}")
        assert message == f"data.{split}: sample 0 is a Tensor; expected (input, label) or a dict with 'labels'"

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("label", [3, 1000])
    def test_with_labels_out_of_range(self, project_of_a_user: Path, search: Refused, split: str, label: int) -> None:
        write_images(project_of_a_user / "labels.parquet", [*[0, 1, 2] * 6, label])
        assert search(f"data.{split}.parquet=labels.parquet").startswith(
            f"data.{split}: labels run from 0 to {label}, but the model has 3 classes (0 to 2); "
        )

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_with_labels_out_of_range_that_only_the_samples_tell(self, search: Refused, split: str) -> None:
        message = search(f"data.{split}={{dataset: 'nets_of_a_user:FarLabels'}}")
        assert message.startswith(f"data.{split}: labels run from 9")

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_with_images_of_a_size_that_the_model_does_not_take(
        self, project_of_a_user: Path, search: Refused, split: str
    ) -> None:
        write_images(project_of_a_user / "large.parquet", [0, 1, 2] * 6, [(8, 8)] * 18)
        message = search(f"data.{split}.parquet=large.parquet")
        assert message.startswith(f"data.{split}: the model does not take inputs of 1 x 8 x 8: RuntimeError: ")
        assert message.endswith("; data.image_size resizes images")

    def test_with_images_of_different_sizes(self, project_of_a_user: Path, search: Refused) -> None:
        write_images(project_of_a_user / "mixed.parquet", [0, 1, 2] * 6, [(6, 6), (8, 8)] * 9)
        message = search("data.train.parquet=mixed.parquet", "data.validation_size=18")
        assert message.startswith("data.train: inputs of sample 0 is ")
        assert message.endswith("images of different sizes; set data.image_size to resize them all")

    def test_empty_validation_split(self, project_of_a_user: Path, search: Refused) -> None:
        assert search("data.validation_size=0").startswith("data.validation_size: ")
        write_images(project_of_a_user / "empty.parquet", [])
        assert search("data.train.parquet=empty.parquet") == "data.train: empty.parquet has no rows"

    def test_validation_split_larger_than_the_data(self, search: Refused) -> None:
        assert search("data.validation_size=19") == (
            "data.validation_size: asks for 19 samples, but the training data has 18; give at most that"
        )

    def test_import_path_that_does_not_import(self, search: Refused) -> None:
        message = search("data.train={dataset: 'nowhere.at_all:images'}")
        assert message == (
            "data.train.dataset: nowhere.at_all:images does not import: ModuleNotFoundError: No module named 'nowhere'"
        )


class TestBudget:
    def test_that_no_rank_vector_meets(self, search: Refused) -> None:
        closest = re.fullmatch(
            r"search\.budget\.parameters: no rank vector meets 0\.99; the closest that can be reached is (0\.\d{4}) "
            r"\(every layer at its cheapest rank\)",
            search("search.budget.parameters=0.99"),
        )
        assert closest is not None
        # 16 x 9 and 16 x 144 and 3 x 576: at rank 1, 25 + 160 + 579 of 4176 weights are left.
        assert float(closest.group(1)) == pytest.approx(1 - 764 / 4176, abs=1e-4)

    def test_that_is_met_already(self, search: Refused) -> None:
        message = search("search.budget.parameters=5000")
        assert message.startswith("search.budget.parameters: the dense network already costs 4,176 parameters, ")

    def test_of_a_cost_that_no_rank_lowers(self, search: Refused) -> None:
        message = search("search.budget={volume: 0.1}")
        assert message.startswith(
            "search.budget.volume: no rank vector meets 0.1; the closest that can be reached is 0"
        )


class TestRunDirectory:
    def test_that_exists(self, project_of_a_user: Path, search: Refused) -> None:
        Path("run").mkdir()
        Path("run/notes.txt").write_text("mine")
        assert search() == ("--run-dir: run exists and is not empty; choose another, or go on with `rankray resume`")

    @pytest.mark.parametrize("below", ["", "/run"])
    def test_that_cannot_be_written_to(self, refused: Refused, below: str) -> None:
        message = refused("search", "config.yaml", "--run-dir", f"net.pt{below}")
        assert re.fullmatch(rf"--run-dir: net\.pt{below} cannot be (read|written to): Not a directory", message)

    def test_at_a_place_that_nobody_knows(self, refused: Refused) -> None:
        message = refused("search", "config.yaml", "--run-dir", "nowhere://run")
        assert message.startswith("--run-dir: 'nowhere://run' is no place to store a run: ")

    @pytest.mark.parametrize("command", ["resume", "report", "export"])
    def test_that_is_no_run(self, project_of_a_user: Path, refused: Refused, command: str) -> None:
        Path("folder").mkdir()
        Path("folder/config.yaml").write_text("a: b")
        assert refused(command, "nowhere") == (
            "run: nowhere does not exist; a run directory is what `rankray search` writes"
        )
        assert refused(command, "folder").startswith("run: folder is no run: it has no space.json; ")
        assert refused(command, "net.pt").startswith("run: net.pt ")

    @pytest.mark.parametrize(
        ("command", "name", "content", "message"),
        [
            ("report", "config.yaml", "a: [", "config.yaml, line 1: is not YAML: "),
            ("resume", "config.yaml", "a: [", "config.yaml, line 1: is not YAML: "),
            ("resume", "config.yaml", "", "config.yaml: holds no mapping; "),
            ("resume", "config.yaml", "search: {method: mbs}", "search.budget: is missing"),
            ("resume", "space.json", "{", "space.json: is no JSON ("),
            ("resume", "space.json", "[]", "space.json: holds no JSON object; restore it from a copy"),
            ("report", "search_state.json", "nothing", "search_state.json: is no JSON ("),
            ("report", "evaluations/part-000000.parquet", "no", "part-000000.parquet: is no readable Parquet file: "),
        ],
    )
    def test_whose_files_are_damaged(
        self, project_of_a_user: Path, refused: Refused, command: str, name: str, content: str, message: str
    ) -> None:
        RunDirectory.create("run", prepare(read_config(Path("config.yaml"))))
        path = Path("run", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        assert message in refused(command, "run")

    def test_whose_model_or_data_changed(self, project_of_a_user: Path, refused: Refused) -> None:
        RunDirectory.create("run", prepare(read_config(Path("config.yaml"))))
        weights = torch.load("net.pt", weights_only=True)
        torch.save({name: tensor + 1e-3 for name, tensor in weights.items()}, "net.pt")
        assert refused("resume", "run") == (
            "model.checkpoint: the model is not what this run began with; its scores would not fit: start a new run"
        )
        torch.save(weights, "net.pt")
        write_images(project_of_a_user / "train.parquet", [2, 1, 0] * 6)
        assert refused("resume", "run").startswith("data.train: the data is not what this run began with; ")


def test_a_process_of_its_own_says_as_little(project_of_a_user: Path) -> None:
    """In-process tests do not see what a library prints around Python, nor warnings."""
    torch.save({"state_dict": MakesAFile("the_code_ran")}, "code.pt")
    program = "import sys; from orchestrator.cli import main; sys.argv[0] = 'rankray'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "search", "config.yaml", "--set", "model.checkpoint=code.pt"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"rankray: model\.checkpoint: code\.pt holds [^\n]+\n", done.stderr)
    assert not Path("the_code_ran").exists()
    assert not Path("runs").exists()
