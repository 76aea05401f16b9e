"""The networks that come with RankRay: CIFAR ResNets (He et al., 2016) and a small network for digits."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "CifarResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "digits_cnn",
]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A).

    Where the block halves the image and widens the channels, the shortcut takes every second pixel and pads the
    new channels with zeros, half of them in front.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, in, H, W)` to `(N, out, H / stride, W / stride)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        front = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, front, self.new_channels - front))


class CifarResNet(nn.Module):
    """A ResNet for 32 x 32 images: three groups of blocks with 16, 32 and 64 channels.

    Args:
        depth: layers with weights, 6 n + 2: one convolution, 2 n in each group, one linear layer.
        num_classes: outputs of the linear layer.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16, blocks, stride=1)
        self.layer2 = _group(16, 32, blocks, stride=2)
        self.layer3 = _group(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, 3, H, W)` images to `(N, num_classes)` logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: torch.Tensor = self.linear(x)
        return logits


def _group(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


def cifar_resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20: 0.27 M parameters, 40.6 M multiply-accumulates on 32 x 32."""
    return CifarResNet(20, num_classes)


def cifar_resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32: 0.46 M parameters, 68.9 M multiply-accumulates on 32 x 32."""
    return CifarResNet(32, num_classes)


def cifar_resnet44(num_classes: int = 10) -> CifarResNet:
    """ResNet-44: 0.66 M parameters, 97.2 M multiply-accumulates on 32 x 32."""
    return CifarResNet(44, num_classes)


def cifar_resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56: 0.85 M parameters, 125.5 M multiply-accumulates on 32 x 32."""
    return CifarResNet(56, num_classes)


def cifar_resnet110(num_classes: int = 10) -> CifarResNet:
    """ResNet-110: 1.7 M parameters, 252.9 M multiply-accumulates on 32 x 32."""
    return CifarResNet(110, num_classes)


def digits_cnn() -> nn.Sequential:
    """Five convolutions and a linear layer for scikit-learn's digits (`workers.datasets:digits`).

    Maps `(N, 1, 8, 8)` images to `(N, 10)` logits. Wide for the task (32 and 64 channels), so that most layers
    can lose rank and some cannot.
    """
    # Named, because reports show these names.
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    in_channels = 1
    for i, (out_channels, stride) in enumerate([(32, 1), (32, 1), (64, 2), (64, 1), (64, 1)], start=1):
        parts[f"conv{i}"] = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        parts[f"bn{i}"] = nn.BatchNorm2d(out_channels)
        parts[f"relu{i}"] = nn.ReLU()
        in_channels = out_channels
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(in_channels, 10)
    return nn.Sequential(parts)
