"""The networks that come with RankRay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from workers.batch import accuracy, cross_entropy, run_model
from workers.checkpoint import load_checkpoint
from workers.datasets import open_dataset
from workers.digits import digits
from workers.models import (
    BasicBlock,
    CifarResNet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    digits_cnn,
)
from workers.splits import collect

Build = Callable[[], nn.Module]
RESNETS: dict[int, Callable[..., CifarResNet]] = {
    20: cifar_resnet20,
    32: cifar_resnet32,
    44: cifar_resnet44,
    56: cifar_resnet56,
    110: cifar_resnet110,
}


class TestCifarResNet:
    @pytest.mark.parametrize(
        ("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
    )
    def test_size(self, depth: int, parameters: int) -> None:
        model = RESNETS[depth]()
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == depth

    def test_as_many_classes_as_asked_for(self) -> None:
        assert cifar_resnet20(num_classes=100).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 100)

    def test_names_of_the_published_checkpoints(self) -> None:
        names = {name.rpartition(".")[0] for name in cifar_resnet20().state_dict()}
        blocks = {
            f"layer{group}.{i}.{part}"
            for group in (1, 2, 3)
            for i in range(3)
            for part in ("conv1", "bn1", "conv2", "bn2")
        }
        assert names == {"conv1", "bn1", "linear"} | blocks

    def test_the_shortcut_takes_every_second_pixel_and_pads_half_of_the_new_channels_in_front(self) -> None:
        block = BasicBlock(16, 32, stride=2).eval()
        nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
        x = torch.rand(1, 16, 4, 4)
        out = block(x)
        assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
        assert not out[:, :8].any()
        assert not out[:, 24:].any()

    @pytest.mark.parametrize("depth", [2, 18, 21])
    def test_a_depth_that_is_not_6_n_plus_2(self, depth: int) -> None:
        with pytest.raises(ValueError, match=r"6 n \+ 2"):
            CifarResNet(depth)

    @pytest.mark.parametrize(("depth", "right"), [(20, 915), (32, 928), (56, 926)])
    def test_published_weights_on_the_thousand_test_images(self, cifar10: Path, depth: int, right: int) -> None:
        model = RESNETS[depth]().eval()
        load_checkpoint(model, cifar10 / f"resnet{depth}.pt")
        normalize = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        dataset = open_dataset({"parquet": str(cifar10 / "test-*.parquet")}, normalize, None, "data.test")
        hits = 0.0
        for part in collect(dataset, None).split(250):
            with torch.inference_mode():
                hits += accuracy(run_model(model, part.inputs), part) * len(part)
        assert round(hits) == right


@pytest.mark.parametrize(("build", "shape"), [(cifar_resnet20, (2, 3, 32, 32)), (digits_cnn, (2, 1, 8, 8))])
def test_torch_fx_traces_it_without_changing_its_outputs(build: Build, shape: tuple[int, ...]) -> None:
    model = build().eval()
    x = torch.rand(shape)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))


def test_digits_are_learnt_in_a_few_seconds() -> None:
    torch.manual_seed(0)
    model = digits_cnn()
    train, test = collect(digits("train"), None), collect(digits("test"), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(4):
        order = torch.randperm(len(train))
        for chosen in order.split(64):
            optimizer.zero_grad()
            cross_entropy(model(train.inputs[chosen]), train.labels[chosen]).backward()
            optimizer.step()
    with torch.inference_mode():
        assert accuracy(model.eval()(test.inputs), test) > 0.97
