"""Checkpoints: every format that people hand over loads, every faulty one is refused in one line, none runs code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from search_spaces.errors import ConfigError
from workers.checkpoint import fingerprint, load_checkpoint
from workers.models import cifar_resnet20

StateDict = dict[str, torch.Tensor]


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def _weight(model: nn.Sequential) -> torch.Tensor:
    """The first layer's."""
    weight: torch.Tensor = model.state_dict()["0.weight"]
    return weight


def _refused(path: Path, model: nn.Module | None = None) -> str:
    """Loads a file that must be refused; the model stays as it was. Returns the message."""
    model = _network() if model is None else model
    before = fingerprint(model)
    with pytest.raises(ConfigError) as raised:
        load_checkpoint(model, path)
    assert raised.value.key == "model.checkpoint"
    assert "\n" not in str(raised.value)
    assert str(path) in raised.value.message
    assert fingerprint(model) == before
    return raised.value.message


@pytest.fixture
def trained() -> nn.Sequential:
    """Weights that no other network of these tests has."""
    return _network(seed=1)


class Malicious:
    """A pickle of this creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


class TestWhatLoads:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_torch_file_of_either_format(self, trained: nn.Sequential, tmp_path: Path, zipped: bool) -> None:
        path = tmp_path / "w.pt"
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=zipped)
        model = _network()
        load_checkpoint(model, path)
        assert fingerprint(model) == fingerprint(trained)

    @pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
    def test_safetensors_under_any_name(self, trained: nn.Sequential, tmp_path: Path, name: str) -> None:
        safetensors.torch.save_file(trained.state_dict(), tmp_path / name)
        model = _network()
        load_checkpoint(model, str(tmp_path / name))
        assert fingerprint(model) == fingerprint(trained)

    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"epoch": 3, "state_dict": state, "best": 0.9},
            lambda state: {"model": state, "optimizer": {"lr": 0.1}},
            lambda state: {"model": {"state_dict": state}},
        ],
    )
    def test_what_a_training_script_saved(
        self, trained: nn.Sequential, tmp_path: Path, prefix: str, wrap: Callable[[StateDict], dict[str, Any]]
    ) -> None:
        torch.save(wrap({prefix + name: value for name, value in trained.state_dict().items()}), tmp_path / "w.pt")
        model = _network()
        load_checkpoint(model, tmp_path / "w.pt")
        assert fingerprint(model) == fingerprint(trained)

    def test_a_model_whose_own_names_start_with_module(self, trained: nn.Sequential, tmp_path: Path) -> None:
        model, wrapped = nn.DataParallel(_network()), nn.DataParallel(trained)
        torch.save(wrapped.state_dict(), tmp_path / "w.pt")
        load_checkpoint(model, tmp_path / "w.pt")
        assert fingerprint(model) == fingerprint(wrapped)

    def test_without_counters_of_batch_norm(self, trained: nn.Sequential, tmp_path: Path) -> None:
        state = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
        torch.save(state, tmp_path / "w.pt")
        model = _network()
        load_checkpoint(model, tmp_path / "w.pt")
        assert fingerprint(model) == fingerprint(trained)

    def test_half_precision_is_cast_to_the_models_dtype(self, trained: nn.Sequential, tmp_path: Path) -> None:
        torch.save(trained.half().state_dict(), tmp_path / "w.pt")
        model = _network()
        load_checkpoint(model, tmp_path / "w.pt")
        assert _weight(model).dtype == torch.float32
        assert torch.equal(_weight(model), _weight(trained).float())

    @pytest.mark.parametrize("stored", ["0.weight", "1.weight", "2.weight"])
    def test_a_tied_weight_that_is_stored_once(self, tmp_path: Path, stored: str) -> None:
        tied = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(3)))
        tied[1].weight = tied[2].weight = tied[0].weight
        wanted = torch.rand(3, 3)
        safetensors.torch.save_file({stored: wanted}, tmp_path / "w.safetensors")
        load_checkpoint(tied, tmp_path / "w.safetensors")
        assert torch.equal(_weight(tied), wanted)
        assert tied[1].weight is tied[0].weight

    def test_infinities_of_a_mask_that_the_model_has_too(self, tmp_path: Path) -> None:
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        torch.save(model.state_dict(), tmp_path / "w.pt")
        load_checkpoint(model, tmp_path / "w.pt")

    def test_a_published_resnet(self, cifar10: Path) -> None:
        model = cifar_resnet20()
        load_checkpoint(model, cifar10 / "resnet20.pt")
        published = torch.load(cifar10 / "resnet20.pt", weights_only=True)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in published.items())


class TestFilesThatCannotBeRead:
    def test_missing(self, tmp_path: Path) -> None:
        assert "cannot be opened: No such file" in _refused(tmp_path / "none.pt")

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "is a directory; name the weights file in it" in _refused(tmp_path)

    @pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
    def test_empty(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        assert "is empty (0 bytes)" in _refused(tmp_path / name)

    @pytest.mark.parametrize("kept", [0.01, 0.3, 0.9, 0.999])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_truncated(self, trained: nn.Sequential, tmp_path: Path, kind: str, kept: float) -> None:
        path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
        if kind == "safetensors":
            safetensors.torch.save_file(trained.state_dict(), path)
        else:
            torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
        content = path.read_bytes()
        path.write_bytes(content[: max(1, int(len(content) * kept))])
        assert "truncated" in (message := _refused(path)) or "damaged" in message

    def test_text(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        path.write_text("<html>404: not found</html>")
        assert "is no checkpoint, or it is damaged" in _refused(path)

    def test_one_flipped_bit_which_torch_itself_does_not_notice(self, trained: nn.Sequential, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        torch.save(trained.state_dict(), path)
        content = bytearray(path.read_bytes())
        at = content.index(_weight(trained).detach().numpy().tobytes())
        content[at] ^= 1
        path.write_bytes(content)
        torch.load(path, weights_only=True)
        assert "is damaged: the checksum of" in _refused(path)


class TestFilesThatHoldCode:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_malicious_torch_file_is_not_run(self, tmp_path: Path, zipped: bool) -> None:
        target, path = tmp_path / "created_by_the_pickle", tmp_path / "w.pt"
        torch.save({"state_dict": Malicious(target)}, path, _use_new_zipfile_serialization=zipped)
        message = _refused(path)
        assert not target.exists()
        assert "posix.mkdir" in message or "nt.mkdir" in message
        assert "save the state dict alone (torch.save(model.state_dict(), ...)) or use safetensors" in message

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_a_malicious_plain_pickle_is_not_run(self, tmp_path: Path, protocol: int) -> None:
        target, path = tmp_path / "created_by_the_pickle", tmp_path / "w.pkl"
        path.write_bytes(pickle.dumps(Malicious(target), protocol=protocol))
        message = _refused(path)
        assert not target.exists()
        assert "could run code, so it was not loaded" in message

    def test_that_pickle_would_have_run(self, tmp_path: Path) -> None:
        target = tmp_path / "created_by_the_pickle"
        pickle.loads(pickle.dumps(Malicious(target)))
        assert target.exists()

    def test_a_whole_module(self, trained: nn.Sequential, tmp_path: Path) -> None:
        torch.save(trained, tmp_path / "w.pt")
        assert "holds the Python object torch.nn.modules" in _refused(tmp_path / "w.pt")

    def test_numpy_beside_the_weights(self, trained: nn.Sequential, tmp_path: Path) -> None:
        torch.save({"state_dict": trained.state_dict(), "best": np.float64(0.9)}, tmp_path / "w.pt")
        assert "could run code" in _refused(tmp_path / "w.pt")

    def test_torchscript(self, trained: nn.Sequential, tmp_path: Path) -> None:
        torch.jit.trace(trained.eval(), torch.zeros(1, 3, 4, 4)).save(str(tmp_path / "w.pt"))
        assert "holds a TorchScript program" in _refused(tmp_path / "w.pt")


class TestWeightsThatDoNotFit:
    def test_another_architecture_names_what_differs_and_how_much(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.Linear(2, 2) for _ in range(5))).state_dict(), path)
        message = _refused(path)
        assert "missing: 1.running_mean, 1.running_var" in message
        assert "6 unexpected: 2.weight, 2.bias, 4.weight and 3 more" in message
        assert "0.weight (8 x 3 x 3 x 3, the model has 4 x 3 x 3 x 3)" in message

    def test_quantised_weights(self, trained: nn.Sequential, tmp_path: Path) -> None:
        state = {**trained.state_dict(), "0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}
        torch.save(state, tmp_path / "w.pt")
        message = _refused(tmp_path / "w.pt")
        assert "1 of another dtype: 0.weight (torch.int8, the model has torch.float32)" in message

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("name", ["3.weight", "1.running_var"])
    def test_weights_that_are_not_finite(self, trained: nn.Sequential, tmp_path: Path, name: str, value: float) -> None:
        trained.state_dict()[name].view(-1)[:2] = value
        torch.save(trained.state_dict(), tmp_path / "w.pt")
        size = trained.state_dict()[name].numel()
        assert f"has NaN or infinite weights: {name} (2 of {size})" in _refused(tmp_path / "w.pt")

    def test_weights_that_overflow_when_cast(self, trained: nn.Sequential, tmp_path: Path) -> None:
        torch.save({**trained.state_dict(), "3.bias": torch.full((5,), 1e300, dtype=torch.float64)}, tmp_path / "w.pt")
        assert "infinite weights: 3.bias (5 of 5)" in _refused(tmp_path / "w.pt")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (torch.zeros(3), "holds an object of type Tensor"),
            ([torch.zeros(3)], "holds an object of type list"),
            ({}, "holds no weights at all"),
            ({"epoch": 3, "optimizer": {}}, "holds other things than tensors: epoch (int), optimizer (dict)"),
        ],
    )
    def test_no_state_dict_in_it(self, tmp_path: Path, content: object, said: str) -> None:
        torch.save(content, tmp_path / "w.pt")
        message = _refused(tmp_path / "w.pt")
        assert said in message
        assert "expected a state dict, or one under 'state_dict' or 'model'" in message


class TestFingerprint:
    def test_equal_for_equal_weights_in_any_memory_layout(self) -> None:
        assert fingerprint(_network()) == fingerprint(_network().to(memory_format=torch.channels_last))
        assert len(fingerprint(_network())) == 64

    @pytest.mark.parametrize("name", list(_network().state_dict()))
    def test_one_changed_number_changes_it(self, name: str) -> None:
        model = _network()
        before = fingerprint(model)
        model.state_dict()[name].view(-1)[-1:] += 1
        assert fingerprint(model) != before

    def test_names_shapes_and_dtypes_count(self) -> None:
        linear = nn.Linear(2, 2, bias=False)
        # All their bytes are zero; the two half-precision types have as many.
        variants = [linear, nn.Sequential(linear), nn.Linear(4, 1, bias=False)]
        variants += [nn.Linear(2, 2, bias=False).to(dtype) for dtype in (torch.float16, torch.bfloat16)]
        with torch.no_grad():
            for model in variants:
                for parameter in model.state_dict().values():
                    parameter.zero_()
        assert len({fingerprint(model) for model in variants}) == 5
