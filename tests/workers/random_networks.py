"""Small random networks of every kind that people build, and what their scores must be."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from search_spaces.assembly import assemble
from search_spaces.candidates import Score
from search_spaces.layers import Layer
from search_spaces.rank_space import RankVector
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.spatial_svd import SpatialSVD
from search_spaces.survey import survey
from workers.batch import Batch, accuracy, logits, run_model
from workers.scorer import Change, Metric, child_of, judge
from workers.subject import Subject

CHANNELS, CLASSES, SIZE = 4, 3, 6


class Chain(nn.Module):
    """Convolution, batch norm, ReLU; the ReLU in one of the ways it is written."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=dice.random() < 0.5)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.how = dice.choice(["module", "inplace module", "function", "inplace function", "positional", "method"])
        self.relu = nn.ReLU(inplace=self.how == "inplace module")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if "module" in self.how:
            return self.relu(x)
        if self.how == "method":
            return x.relu_()
        return F.leaky_relu(x, 0.1, True) if self.how == "positional" else F.relu(x, inplace="inplace" in self.how)


class Residual(nn.Module):
    """The sum written as `+`, `+=` and `add_`."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.first, self.second = Chain(dice), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm, self.how = nn.BatchNorm2d(CHANNELS), dice.choice(["+", "+=", "add_", "reversed"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.second(self.first(x)))
        if self.how == "+=":
            y += x
        elif self.how == "add_":
            y.add_(x)
        else:
            y = x + y if self.how == "reversed" else y + x
        return F.relu(y, inplace=True)


class PreActivation(nn.Module):
    """Batch norm before the convolution, which must not be folded into the one before it."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.pre = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        return x + self.conv(torch.relu(self.norm(x)))


class Concatenation(nn.Module):
    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.grow = nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.grow_again = nn.Conv2d(CHANNELS + 3, 2, 3, padding=1)
        self.transition = nn.Conv2d(CHANNELS + 5, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in (self.grow, self.grow_again):
            features += [layer(torch.cat(features, 1)).relu()]
        return self.transition(torch.cat(features, 1))


class Branches(nn.Module):
    """Branches whose convolutions all come before their norms: cuts fall between a convolution and its batch norm."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(CHANNELS, 2, kernel, padding=kernel // 2) for kernel in (1, 3))
        self.left_norm, self.right_norm = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.gate = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        left, right, gate = self.left(x), self.right(x), self.gate(x)
        left, right = F.relu(self.left_norm(left), inplace=True), F.elu(self.right_norm(right), inplace=True)
        return torch.cat([left, right], 1) + gate.relu_()


class Depthwise(nn.Module):
    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.pointwise, self.act = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.act(self.norm(self.depthwise(x))))


class Shared(nn.Module):
    """One convolution, and one in-place ReLU, called twice."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.conv, self.between = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm, self.act = nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.between(self.act(self.norm(self.conv(x))))))


class Padded(nn.Module):
    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        mode = dice.choice(["zeros", "circular", "reflect", "replicate"])
        padding: Any = dice.choice(["same", 1, (1, 1)])
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=padding, padding_mode=mode)
        self.strided = nn.Conv2d(CHANNELS, CHANNELS, (3, 1), stride=(2, 1), padding=(1, 0), dilation=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(input=x)
        return y if x.shape[-2] < 4 else F.interpolate(self.strided(y), x.shape[-2:])


class Gate(nn.Module):
    """Squeeze and excitation: linear layers on pooled features, with a `view` after a convolution."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 3)
        self.up, self.drop = nn.Linear(3, CHANNELS), nn.Dropout(0.5, inplace=dice.random() < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        pooled = x.view(x.size(0), CHANNELS, -1).mean(-1)
        scale = torch.sigmoid(self.up(self.drop(self.down(pooled).relu())))
        return x * scale[:, :, None, None]


class WritesThroughView(nn.Module):
    """What is written to a view shows in the tensor; torch.fx must not lose that."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.flatten(1).mul_(0.5).add_(0.1)
        part = x[:, :2]
        part += 1.0
        x[:, 3] = 0.3
        return self.mix(x)


class WritesAfterRead(nn.Module):
    """Writes to a layer's output that another layer has read, and that has a second name."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.how = dice.choice(["relu_", "+=", "dropout"])
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = alias = self.conv(x)
        z = self.other(y)
        if self.how == "dropout":
            y = self.drop(y)  # in eval mode the same tensor
        if self.how == "+=":
            y += 1.0
        else:
            y.mul_(0.5).sub_(0.2)
        return alias + z


class BranchesOnValues(nn.Module):
    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.test, self.yes, self.no = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.test(x)
        if x.mean() > 0:
            return self.yes(x)
        return self.no(self.yes(x.abs()))


class ChannelLinear(nn.Module):
    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 6), nn.Linear(6, CHANNELS)
        # Over the second dimension, as of a convolution: folding it into a linear layer would be wrong.
        self.batch_norm = nn.BatchNorm2d(SIZE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.norm(x.permute(0, 2, 3, 1)))
        return x + self.down(F.gelu(self.batch_norm(y))).permute(0, 3, 1, 2).contiguous()


class TorchEncoder(nn.Module):
    """Torch's own transformer layer over positions, into which torch.fx does not look."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        norm_first = dice.random() < 0.5
        self.encoder = nn.TransformerEncoderLayer(CHANNELS, 2, 5, 0.1, batch_first=True, norm_first=norm_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape).contiguous()


class Attention(nn.Module):
    """A transformer block by hand, query, key and value in one layer."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.norm, self.drop = nn.LayerNorm(CHANNELS), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        attention = self.drop((q @ k.transpose(-2, -1) / CHANNELS**0.5).softmax(-1))
        tokens = tokens + self.out(attention @ v)
        return tokens.transpose(1, 2).view(x.shape).contiguous()


TRACEABLE = (
    *(Chain, Residual, PreActivation, Concatenation, Branches, Depthwise, Shared, Gate, ChannelLinear, Attention),
)
UNTRACEABLE = (Padded, WritesThroughView, WritesAfterRead, BranchesOnValues, TorchEncoder)


class Network(nn.Module):
    """Stem, blocks, pooling, head."""

    def __init__(self, blocks: Sequence[type[nn.Module]], dice: random.Random) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(block(dice) for block in blocks))  # type: ignore[call-arg]
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(CHANNELS * 4, CLASSES)

    def forward(self, pixels: Tensor, scale: float = 1.0) -> Tensor:
        x = self.pool(self.blocks(self.stem(pixels)))
        return self.head(x.view(x.size(0), -1)) * scale


class TakesDict(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.network(inputs["pixels"]) + inputs["shift"]}


class TakesNames(TakesDict):
    def forward(self, pixels: Tensor, shift: Tensor, mask: Tensor | None = None, flag: bool = True) -> Any:  # type: ignore[override]
        logits = self.network(pixels) + shift
        return (logits, pixels) if flag and mask is None else logits


class TakesAnything(TakesDict):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:  # type: ignore[override]
        return [self.network(kwargs["pixels"]) + kwargs["shift"], args]


class Case:
    """A network with everything that scores it."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        schemes: Sequence[Scheme],
        factors: Mapping[str, Factors],
        batch: Batch,
    ) -> None:
        self.model, self.layers, self.schemes, self.factors, self.batch = model, layers, schemes, factors, batch

    def __repr__(self) -> str:
        kinds = [type(block).__name__ for block in self.model.modules() if type(block) in (*TRACEABLE, *UNTRACEABLE)]
        parameter = next(self.model.parameters())
        return f"{type(self.model).__name__}({', '.join(kinds)}; {parameter.dtype}, {len(self.batch)} samples)"

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of a scorer, up to the metric."""
        return copy.deepcopy(self.model), self.layers, self.schemes, self.factors, self.batch

    def subject(self, metric: Metric = accuracy, slice_size: int | None = None) -> Subject:
        return Subject(
            lambda: copy.deepcopy(self.model), self.layers, self.schemes, self.factors, self.batch, metric, slice_size
        )

    def outputs(self, ranks: RankVector) -> Tensor:
        """Of the assembled network, the whole batch at once."""
        with torch.inference_mode():
            network = assemble(self.model, self.layers, self.schemes, ranks, self.factors)
            return logits(run_model(network, self.batch.inputs))

    def values(self, ranks: RankVector, metric: Metric = accuracy) -> dict[str, float]:
        """The plain pass's values of the assembled network."""
        dense: RankVector = (None,) * len(self.layers)
        reference = torch.log_softmax(self.outputs(dense).float(), -1)
        found = judge(self.outputs(ranks), self.batch, metric, reference)
        assert found is not None
        return found


def make_case(
    model: nn.Module,
    seed: int = 0,
    *,
    samples: int = 7,
    dtype: torch.dtype = torch.float32,
    inputs: Any = None,
    schemes: Callable[[random.Random], Scheme] | None = None,
    corrected: bool = False,
) -> Case:
    """Random weights, statistics, factors and samples for a model.

    Args:
        corrected: every rank of every layer has a bias correction, at random.
    """
    torch.manual_seed(seed)
    dice = random.Random(seed)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for parameter in model.parameters():
            parameter.mul_(1.5)
    given = torch.randn(samples, 3, SIZE, SIZE, dtype=dtype) if inputs is None else inputs
    batch = Batch(given, torch.randint(0, CLASSES, (samples,)))
    layers = survey(model, lambda network: run_model(network, batch.example().inputs)).layers
    pick = schemes or (lambda one: one.choice([ChannelSVD(), SpatialSVD()]))
    chosen = [pick(dice) for _ in layers]
    factors = {
        layer.name: scheme.factorise(layer, model.get_parameter(f"{layer.name}.weight").detach())
        for layer, scheme in zip(layers, chosen, strict=True)
    }
    if corrected:
        for layer, scheme in zip(layers, chosen, strict=True):
            channels = layer.dense.out_channels
            corrections = {rank: torch.randn(channels, dtype=dtype) for rank in scheme.ranks(layer)}
            factors[layer.name] = replace(factors[layer.name], bias_corrections=corrections)
    return Case(model, layers, chosen, factors, batch)


@st.composite
def cases(
    draw: st.DrawFn,
    blocks: Sequence[type[nn.Module]] = (*TRACEABLE, *UNTRACEABLE),
    wrappers: Sequence[type[TakesDict] | None] = (None, None, None, TakesDict, TakesNames, TakesAnything),
) -> Case:
    """Random networks of one to three of the blocks; half of them take a dict, in one of the ways.

    Half of them have corrected biases.
    """
    seed = draw(st.integers(0, 10_000))
    corrected = draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    chosen = draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=3))
    samples = draw(st.integers(1, 9))
    torch.manual_seed(seed)
    network = Network(chosen, random.Random(seed))
    wrapper = draw(st.sampled_from(wrappers))
    if wrapper is None:
        return make_case(network, seed, samples=samples, dtype=dtype, corrected=corrected)
    inputs = {
        "pixels": torch.randn(samples, 3, SIZE, SIZE, dtype=dtype),
        "shift": torch.randn(samples, CLASSES, dtype=dtype),
    }
    return make_case(wrapper(network), seed, samples=samples, dtype=dtype, inputs=inputs, corrected=corrected)


@st.composite
def families(draw: st.DrawFn, case: Case) -> tuple[RankVector, list[Change]]:
    """A random parent and its children: of no change, one, several; to dense and from dense."""
    ranks = [
        st.one_of(st.none(), st.integers(1, len(scheme.ranks(layer))))
        for layer, scheme in zip(case.layers, case.schemes, strict=True)
    ]
    parent = tuple(draw(st.one_of(st.tuples(*ranks), st.just((None,) * len(ranks)))))
    indices = st.lists(st.integers(0, len(ranks) - 1), max_size=3, unique=True)
    changes = [{index: draw(ranks[index]) for index in draw(indices)} for _ in range(draw(st.integers(1, 5)))]
    return parent, list(changes)


def assert_right(case: Case, parent: RankVector, changes: Sequence[Change], scores: Sequence[Score]) -> None:
    """Every score is that of the assembled network: to 1e-4, and to float32's rounding where weights are float64."""
    tolerance = 1e-4 if next(case.model.parameters()).dtype == torch.float32 else 1e-6
    for change, score in zip(changes, scores, strict=True):
        ranks = child_of(parent, change)
        assert score.ranks == ranks
        assert score.ok, score.reason
        expected = case.values(ranks)
        for name in ("loss", "kl"):
            assert abs(score.values[name] - expected[name]) <= tolerance * max(1.0, abs(expected[name])), name
        best = case.outputs(ranks).topk(2, dim=-1).values
        if float((best[..., 0] - best[..., 1]).min()) > tolerance:  # a near-tie may fall either way
            assert score.values["accuracy"] == expected["accuracy"]


def assert_outputs(case: Case, parent: RankVector, changes: Sequence[Change], found: Sequence[Tensor | None]) -> None:
    """The outputs are those of the assembled networks: to 1e-4 in float32 and 1e-9 in float64."""
    for change, outputs in zip(changes, found, strict=True):
        expected = case.outputs(child_of(parent, change))
        assert outputs is not None
        tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(outputs, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1))
