"""The training loop: an SGD loop written out does the same; it resumes bit for bit; it says when it diverges."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search_spaces.errors import ConfigError, TrialDivergedError
from tests.workers.training.digit_setups import QUICK, digit_setup
from workers.training.augmentation import Augmentation
from workers.training.samples import Normalisation, Samples, generator
from workers.training.sgd import SGDSettings, SGDTraining, cosine, evaluate

PLAIN: dict[str, Any] = {"batch_size": 16, "precision": "float32", "crop_padding": 1, "learning_rate": 0.05}


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def samples(count: int = 70) -> Samples:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return Samples(pixels, torch.randint(5, (count,), generator=draw), Normalisation((0.5,), (0.25,)))


def train(model: nn.Module, epochs: int, data: Samples | None = None, **settings: Any) -> SGDTraining:
    training = SGDTraining(model, data or samples(), SGDSettings(epochs=4, **{**PLAIN, **settings}), seed=7)
    for _ in range(epochs):
        training.epoch()
    return training


def written_out(model: nn.Module, epochs: int, settings: SGDSettings, teacher: nn.Module | None = None) -> list[float]:
    """The same training as a plain loop with torch's optimizer; the epochs' losses."""
    data, losses = samples(), []
    assert isinstance(data.inputs, torch.Tensor)
    decayed = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() == 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum, nesterov=True)
    for epoch in range(epochs):
        order = torch.randperm(70, generator=generator(7, epoch, "order"))
        draw = generator(7, epoch, "augmentation")
        total = 0.0
        for step in range(4):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate / 2 * (1 + math.cos(math.pi * (epoch + step / 4) / 4))
            rows = order[16 * step : 16 * step + 16]
            inputs = (Augmentation(1)(data.inputs[rows], draw) / 255 - 0.5) / 0.25
            scores = model.train()(inputs)
            loss = F.cross_entropy(scores, data.labels[rows], label_smoothing=settings.label_smoothing)
            if teacher is not None:
                with torch.no_grad():
                    target = torch.softmax(teacher.eval()(inputs) / settings.temperature, -1)
                soft = torch.log_softmax(scores / settings.temperature, -1)
                gap = (target * (target.log() - soft)).sum(-1).mean() * settings.temperature**2
                loss = (1 - settings.distillation) * loss + settings.distillation * gap
            optimizer.zero_grad()
            loss.backward()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            total += float(loss.detach()) / 4
        losses.append(total)
    return losses


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.1, "label_smoothing": 0.2}, {"clip_norm": 0.1}, {"distillation": 0.7, "temperature": 2.0}],
    ids=["plain", "decay, smoothing", "clipping", "distillation"],
)
def test_the_loop_written_out_gives_the_same_weights(changes: dict[str, Any]) -> None:
    settings = SGDSettings(epochs=4, **{**PLAIN, **changes})
    teacher = network()
    nn.init.normal_(teacher[5].weight)
    training = SGDTraining(network(), samples(), settings, seed=7, teacher=teacher)
    results = [training.epoch() for _ in range(2)]
    expected = network()
    losses = written_out(expected, 2, settings, teacher if "distillation" in changes else None)
    assert [one.loss for one in results] == pytest.approx(losses, rel=1e-4)
    assert [one.steps for one in results] == [4, 4]
    for name, tensor in training.network.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rate = cosine(SGDSettings(epochs=10, warm_up_epochs=2, learning_rate=0.4))
    assert [rate(epoch) for epoch in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    rates = [rate(epoch / 7) for epoch in range(14, 71)]
    assert rates == sorted(rates, reverse=True)
    assert cosine(SGDSettings(epochs=1, learning_rate=0.4))(0) == 0.4


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_going_on_from_any_epoch_gives_the_same_bits(epochs: int, precision: str) -> None:
    whole = train(network(dropout=0.3), 4, precision=precision)
    file = io.BytesIO()
    torch.save(train(network(dropout=0.3), epochs, precision=precision).state(), file)
    file.seek(0)
    rest = train(nn.Sequential(*network(dropout=0.3)), 0, precision=precision)
    rest.restore(torch.load(file, weights_only=True))
    torch.manual_seed(99)  # global draws elsewhere in the process
    for _ in range(4 - epochs):
        rest.epoch()
    assert (rest.epochs, rest.steps) == (4, 16)
    for name, tensor in rest.network.state_dict().items():
        assert torch.equal(tensor, whole.network.state_dict()[name]), name


def test_a_state_is_a_copy() -> None:
    training = train(network(), 1)
    state = training.state()
    before = copy.deepcopy(state)
    training.epoch()
    assert all(torch.equal(state["network"][name], tensor) for name, tensor in before["network"].items())
    moments, old = (one["optimizer"]["state"][0]["momentum_buffer"] for one in (state, before))
    assert torch.equal(moments, old)


def test_other_draws_of_the_process_are_left_alone() -> None:
    training = train(network(dropout=0.5), 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.epoch()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e18}, {"data": float("nan")}], ids=["rate", "data"])
def test_a_loss_that_is_no_number_ends_the_trial(changes: dict[str, Any]) -> None:
    data = samples()
    if "data" in changes:
        data = Samples(torch.full((70, 1, 6, 6), changes.pop("data")), data.labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 5))
    with pytest.raises(TrialDivergedError, match="the training loss became NaN or infinite in epoch") as raised:
        train(model, 4, data, **changes)
    assert raised.value.epoch in (1, 2)
    assert 0 < raised.value.learning_rate <= changes.get("learning_rate", 0.05)
    assert "\n" not in str(raised.value)


def test_gradients_can_be_added_to() -> None:
    model = network()

    def only_this(_step: int) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(1.0)

    settings = SGDSettings(epochs=1, **{**PLAIN, "momentum": 0.0, "weight_decay": 0.0})
    before = copy.deepcopy(model)
    training = SGDTraining(model, samples(), settings, seed=0, rate=lambda _: 0.5, after_backward=only_this)
    training.epoch()
    for new, old in zip(model.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 4 * 0.5)


def test_half_precision_on_a_cpu() -> None:
    assert train(network(), 1, precision="bfloat16").network[0].weight.dtype is torch.float32  # type: ignore[index]
    with pytest.raises(ConfigError, match="float16 needs a GPU"):
        train(network(), 0, precision="float16")


def test_inputs_by_name() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.linear(first + second)}

    draw = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(40, 3, generator=draw) for name in ("first", "second")}
    data = Samples(inputs, (inputs["first"] + inputs["second"])[:, 0].gt(0).long())
    training = train(Sum(), 4, data, learning_rate=1.0)
    accuracy, loss = evaluate(training.network, data)
    assert accuracy > 0.85
    assert loss < 0.5


def test_it_learns_digits() -> None:
    setup = digit_setup()
    accuracy, _ = evaluate(setup.network, setup.held_out)
    assert accuracy > 0.9


def test_evaluation_counts_what_is_no_number_as_wrong() -> None:
    data = Samples(torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0, 1, 1]))
    assert evaluate(nn.Identity(), data)[0] == 0.5
    assert QUICK["precision"] == "float32"
