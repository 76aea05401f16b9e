"""Boards behind a real ssh: an sshd on loopback, a bare interpreter of another version at its other end."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.layers import Stage
from tests.workers.timing.boards import SshServer, bare_python, ssh_server
from workers.timing import board
from workers.timing.board_link import BoardLink
from workers.timing.contract import Device, Measurement, Program
from workers.timing.lease import Lease
from workers.timing.ssh_way import SshWay
from workers.timing.way import way_to
from workers.timing.workloads import LayerWorkload, NetworkWorkload

HELD = Lease((), ())
# This machine may be busy, and how well the protocol rejects that is tested elsewhere.
RULES = {
    "warm_up_s": 0.01, "warm_up_limit_s": 0.1, "half_width": 10.0, "undisturbed": 0.0, "load": 1.0, "drift": 100.0,
    "cpu_block_s": 0.001, "wait_s": 0.1,
}  # fmt: skip
LAYER = LayerWorkload(Stage(3, 4, (3, 3), padding=(1, 1)), True, 5, 5)
LOW_RANK = LayerWorkload(Stage(3, 4, (3, 3), padding=(1, 1)), True, 5, 5, "channel_svd", 2)
ENDLESS = LayerWorkload(Stage(64, 64, (5, 5), padding=(2, 2)), True, 32, 32)
"""Plain Python computes it in minutes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def device(server: SshServer) -> Callable[..., Device]:
    """A device behind the server; keyword arguments are the device's, `ssh` and `python` its options."""

    def made(ssh: str = "board", python: str | None = None, **given: Any) -> Device:
        found = python or shlex.quote(bare_python())
        leased = f"export RANKRAY_LEASES={server.config.parent}; {found}"  # others may time something on this machine
        options = {"ssh": ssh, "ssh_config": str(server.config), "python": leased}
        return Device(**{"name": "tx2", "backend": "python", "options": options, **given})

    return made


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No agent survives its connection, however that ends."""
    yield
    if "server" in request.fixturenames:
        server: SshServer = request.getfixturevalue("server")
        until = time.monotonic() + 15
        while (agents := server.agents()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not agents


def timed(device: Device, *workloads: Any, **rules: float) -> list[Measurement]:
    return SshWay().time(device, workloads, {**RULES, **rules}, HELD)


class TestMeasuring:
    def test_a_board_s_record_is_that_of_any_device(self, device: Callable[..., Device]) -> None:
        python = bare_python()
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        dense, low_rank = timed(device(), LAYER, LOW_RANK)
        for workload, found in ((LAYER, dense), (LOW_RANK, low_rank)):
            assert (found.status, found.reason) == ("ok", "")
            assert (found.kind, found.subject, found.batch_size) == ("layer", workload.subject, 1)
            assert (found.device, found.backend, found.precision) == ("tx2", "python", "float32")
            assert found.versions["python"] == version
            assert {"kernel", "timing"} <= set(found.versions)
            assert found.device_model
            assert found.node
            assert found.spread is not None
            assert found.spread.blocks >= 11
            assert 0.0 < found.spread.min_ms <= found.spread.median_ms <= found.spread.p90_ms
            assert found.before.load is not None
            assert not math.isnan(found.drift)

    def test_the_host_keeps_the_protocol(self, device: Callable[..., Device]) -> None:
        """The same rules decide over the agent's blocks: with none undisturbed enough, nothing is `ok`."""
        [found] = timed(device(time_limit_s=2.0), LAYER, undisturbed=1e9, patience=10**6)
        assert found.status == "noisy"
        assert "others used the processor" in found.reason

    def test_the_board_s_load_is_looked_at_first(self, device: Callable[..., Device]) -> None:
        [found] = timed(device(), LAYER, load=-1.0)
        assert found.status == "noisy"
        assert "others use" in found.reason

    def test_networks_go_as_files_to_a_board_that_reads_them(self, device: Callable[..., Device]) -> None:
        torch.manual_seed(0)
        network = NetworkWorkload(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (3, 5, 5)
        )
        found = timed(device(backend="torch", python=shlex.quote(sys.executable)), network, LOW_RANK)
        assert [one.status for one in found] == ["ok", "ok"], [one.reason for one in found]
        assert found[0].kind == "network"
        assert found[0].versions["torch"] == torch.__version__

    def test_what_a_backend_refuses_does_not_touch_the_others(self, device: Callable[..., Device]) -> None:
        network = NetworkWorkload(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (3, 5, 5))
        refused, found = timed(device(), network, LAYER)
        assert (refused.status, found.status) == ("error", "ok")
        assert refused.reason == "tx2: the backend 'python' runs cascades of Conv2d and Linear only"

    def test_a_wrong_answer_is_told(self, device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that arrive as others: what runs there is not what was asked for."""

        def garbled(program: Program, backend: str) -> Any:
            spec, (inputs, weight, *rest) = packed(program, backend)
            return spec, [inputs, weight[4:] + weight[:4], *rest]

        packed = board.packed
        monkeypatch.setattr(board, "packed", garbled)
        [found] = timed(device(), LAYER)
        assert found.status == "wrong"
        assert "outputs differ from the reference" in found.reason
        assert found.spread is None

    def test_words_before_the_protocol_do_not_matter(self, device: Callable[..., Device]) -> None:
        python = f"echo 'Welcome to Ubuntu 18.04'; printf 'no end of line'; {shlex.quote(bare_python())}"
        assert [one.status for one in timed(device(python=python), LAYER)] == ["ok"]

    def test_it_is_looked_at_without_timing(self, device: Callable[..., Device]) -> None:
        seen = SshWay().identify(device())
        [found] = timed(device(), LAYER)
        assert (seen.device_model, seen.versions, seen.node) == (found.device_model, found.versions, found.node)
        assert seen.state.load is not None


class TestConnectionsThatEnd:
    @pytest.fixture
    def cut(self, server: SshServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Makes the server's end of so many connections die in the middle of timing."""

        def soon(times: int) -> None:
            left, ask = [times], BoardLink.ask

            def asked(link: BoardLink, do: str, *arguments: Any, **named: Any) -> Any:
                if do == "block" and left[0]:
                    left[0] -= 1
                    server.cut()
                return ask(link, do, *arguments, **named)

            monkeypatch.setattr(BoardLink, "ask", asked)

        return soon

    def test_a_cut_measurement_is_taken_again(self, device: Callable[..., Device], cut: Callable[[int], None]) -> None:
        cut(1)
        found = timed(device(), LAYER, LOW_RANK)
        assert [(one.status, one.reason) for one in found] == [("ok", "")] * 2

    def test_twice_is_an_error_in_one_line(self, device: Callable[..., Device], cut: Callable[[int], None]) -> None:
        cut(2)
        [found] = timed(device(), LAYER)
        assert (found.status, found.spread) == ("error", None)
        assert found.reason.startswith("the connection ended: ")
        assert "\n" not in found.reason
        assert [one.status for one in timed(device(), LAYER)] == ["ok"]  # and the board is free again

    def test_what_hangs_is_a_timeout_and_the_others_are_timed(self, device: Callable[..., Device]) -> None:
        found, hung = timed(device(time_limit_s=3.0), LAYER, ENDLESS)
        assert (found.status, hung.status) == ("ok", "timeout")
        assert hung.reason == "no answer to `outputs` within 3 s"

    def test_an_agent_of_another_host_has_the_board(self, device: Callable[..., Device]) -> None:
        with (
            board.Board(device(), ["sh", "-c"], device().options["python"], leased=True),
            pytest.raises(MeasurementError, match="tx2: board: another agent times something on the board"),
        ):
            timed(device(), LAYER)


class TestNoConnection:
    def refusal(self, device: Device) -> str:
        with pytest.raises(MeasurementError) as refused:
            timed(device, LAYER)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def test_an_unknown_host_key_is_not_taken_on_trust(self, device: Callable[..., Device]) -> None:
        assert "Host key verification failed" in self.refusal(device(ssh="stranger"))

    def test_nobody_there(self, device: Callable[..., Device]) -> None:
        assert "tx2: ssh://127.0.0.1:9: the connection ended: ssh: connect" in self.refusal(
            device(ssh="ssh://127.0.0.1:9")
        )

    def test_no_such_interpreter(self, device: Callable[..., Device]) -> None:
        assert "no-such-python" in self.refusal(device(python="/no-such-python"))

    def test_a_board_without_the_backend(self, device: Callable[..., Device]) -> None:
        assert "has no torch: ModuleNotFoundError" in self.refusal(device(backend="torch"))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"ssh": "-oProxyCommand=touch /tmp/x"}, "options.ssh: must be a text that does not start with `-`"),
            ({"ssh": 5}, "options.ssh: must be a text"),
            ({"ssh": ""}, "options.ssh: must be a text"),
            ({"ssh": "orin", "pyton": "python3.8"}, "options.pyton: unknown option of a board; did you mean 'python'?"),
            ({"python": "python3"}, "options.ssh: is missing"),
        ],
    )
    def test_a_wrong_one_is_named_before_anything_runs(self, options: dict[str, Any], message: str) -> None:
        device = Device("tx2", "torch", options=options)
        for ask in (SshWay().identify, SshWay().things, lambda one: SshWay().time(one, [LAYER], {}, HELD)):
            with pytest.raises(ConfigError, match=r"devices\.tx2\.") as wrong:
                ask(device)
            assert message in str(wrong.value)

    def test_the_option_chooses_the_way(self) -> None:
        assert isinstance(way_to(Device("tx2", "torch", options={"ssh": "orin"})), SshWay)
        assert not isinstance(way_to(Device("cpu", "torch")), SshWay)

    def test_a_board_is_one_thing_whatever_it_is_called(self, tmp_path: Path) -> None:
        config = tmp_path / "config"
        config.write_text("Host a b\n  HostName 10.0.0.7\n")
        made = [Device("x", "torch", options={"ssh": name, "ssh_config": str(config)}) for name in ("a", "me@b")]
        assert [SshWay().things(one) for one in made] == [("board-10.0.0.7-22",)] * 2
