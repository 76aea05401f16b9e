"""Removed filters: the smaller network computes what the masked one does, whatever ties its channels together."""

import pytest
import torch
import torchvision
from torch import nn
from torch.func import functional_call

from workers.models import cifar_resnet20
from workers.training.filter_groups import filter_groups
from workers.training.filter_removal import masking, without_filters

from .digit_setups import small_cnn


class Concatenated(nn.Module):
    """Two branches side by side, a batch norm over both, a depthwise convolution, a linear layer on 2 x 2 pixels."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.linear = nn.Linear(40, 7)

    def forward(self, x):
        x = torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.linear(torch.relu(self.depthwise(x)).flatten(1))


class Normalised(nn.Module):
    """A layer norm reads all channels at once: no filter can be removed without changing the others."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
        return self.linear(nn.functional.layer_norm(x, (x.shape[1],)))


def with_statistics(model):
    """Batch norms as training leaves them: no mean at 0, no shift at 0."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.3)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def random_masks(groups, seed):
    draw = torch.Generator().manual_seed(seed)
    kept = [torch.rand(group.size, generator=draw) < 0.6 for group in groups]
    for one in kept:
        one[0] = True
    return kept


NETWORKS = {
    "plain": (small_cnn, (1, 8, 8)),
    "option A": (cifar_resnet20, (3, 16, 16)),
    "residual sums": (lambda: torchvision.models.resnet18(num_classes=5), (3, 32, 32)),
    "concatenation": (Concatenated, (3, 2, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_computes_what_the_masked_one_does(name):
    build, shape = NETWORKS[name]
    model = with_statistics(build())
    inputs = torch.randn(3, *shape)
    groups = filter_groups(model, inputs).groups
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for seed in range(2):
        kept = random_masks(groups, seed)
        smaller = without_filters(model, inputs, groups, kept)
        with torch.no_grad():
            masked = functional_call(model, masking(model, groups, [one.float() for one in kept]), (inputs,))
            torch.testing.assert_close(smaller(inputs), masked, rtol=1e-4, atol=1e-5)
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_padding_shortcuts_leave_only_the_insides_of_blocks_removable():
    found = filter_groups(cifar_resnet20(), torch.randn(2, 3, 16, 16))
    assert [group.root for group in found.groups] == [f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert "pads" in found.refused["conv1"]
    assert "outputs" in found.refused["linear"]


def test_residual_sums_share_their_filters():
    model = torchvision.models.resnet18(num_classes=5)
    found = filter_groups(model, torch.randn(2, 3, 32, 32))
    stem = next(group for group in found.groups if group.size == 64 and len(group.members) > 3)
    producers = {member.name for member in stem.on("out") if isinstance(model.get_submodule(member.name), nn.Conv2d)}
    assert producers == {"conv1", "layer1.0.conv2", "layer1.1.conv2"}


def test_what_computes_something_else_without_a_filter_is_refused():
    found = filter_groups(Normalised(), torch.randn(2, 3, 8, 8))
    assert not found.groups
    assert "something else" in found.refused["conv"]


def test_layers_that_must_stay_keep_their_filters():
    found = filter_groups(small_cnn(), torch.randn(2, 1, 8, 8), layers=["0", "3"])
    assert [group.root for group in found.groups] == ["3", "0"] or [g.root for g in found.groups] == ["0", "3"]
    assert "not among" in found.refused["6"]


def test_a_member_knows_which_of_its_inputs_belong_to_which_filter():
    (last,) = [group for group in filter_groups(small_cnn(), torch.randn(2, 1, 8, 8)).groups if group.root == "6"]
    (linear,) = last.on("in")
    assert linear.name == "11"
    assert sorted(linear.places) == list(range(96))
    assert all(channel == place // 4 for place, channel in zip(linear.places, linear.channels, strict=True))


def test_nothing_removed_is_the_network_itself():
    model = with_statistics(small_cnn()).requires_grad_(False)
    inputs = torch.randn(2, 1, 8, 8)
    groups = filter_groups(model, inputs).groups
    same = without_filters(model, inputs, groups, [torch.ones(group.size, dtype=torch.bool) for group in groups])
    torch.testing.assert_close(same(inputs), model(inputs))
    assert not any(parameter.requires_grad for parameter in same.parameters())
