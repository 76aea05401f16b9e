"""The agent by itself, run by real interpreters on this machine as ssh would run it on a board."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.workers.timing.boards import bare_python, bare_pythons
from workers.timing import board_agent
from workers.timing.board_link import BoardError, BoardLink, LinkLostError
from workers.timing.board_program import packed
from workers.timing.contract import Program

HERE = ["sh", "-c"]


@pytest.fixture(scope="module", autouse=True)
def leases_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Somebody may time something on this machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RANKRAY_LEASES", str(tmp_path_factory.mktemp("leases")))
        yield


def linked(python: str, backend: str, *, silence_s: float = 60.0, **asked: Any) -> BoardLink:
    """An agent on this machine that has said hello."""
    link = BoardLink(HERE, f"exec {shlex.quote(python)}", limit_s=30.0, silence_s=silence_s)
    try:
        link.ask("hello", {"backend": backend, **asked}, limit_s=120.0)
    except BaseException:
        link.close()
        raise
    return link


def program_of(module: nn.Module, *shape: int) -> Program:
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Program(module.eval(), inputs, module(inputs))


def outputs_of(link: BoardLink, program: Program, backend: str) -> torch.Tensor:
    number = link.ask("build", *packed(program, backend), limit_s=60.0)[0]["program"]
    header, [raw] = link.ask("outputs", {"program": number}, limit_s=60.0)
    return torch.tensor(board_agent.floats(raw)).reshape(header["shape"])


def cascade() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 5, (1, 3), bias=False))


def await_end(processes: list[psutil.Process], seconds: float = 10.0) -> list[psutil.Process]:
    """Those that are still alive after a while."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_it_is_python_3_6() -> None:
    ast.parse(inspect.getsource(board_agent), feature_version=(3, 6))


def test_it_imports_the_standard_library_only() -> None:
    """At its top; what a backend needs is the board's own, and imported by name."""
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(board_agent)))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("place", [0, -1], ids=["oldest", "newest"])
def test_the_oldest_and_the_newest_interpreter_here_compute_what_torch_does(place: int) -> None:
    python = (list(bare_pythons().values()) or [bare_python()])[place]
    program = program_of(cascade(), 2, 6, 7, 7)
    with contextlib.closing(linked(python, "python")) as link:
        torch.testing.assert_close(outputs_of(link, program, "python"), program.reference)


@pytest.fixture(scope="module")
def link() -> Iterator[BoardLink]:
    link = linked(bare_python(), "python")
    yield link
    link.close()


class TestPlainPython:
    @settings(max_examples=40)
    @given(
        groups=st.integers(1, 3),
        deep=st.integers(1, 3),
        wide=st.integers(1, 3),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
        padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        bias=st.booleans(),
        samples=st.integers(1, 2),
    )
    def test_it_computes_any_convolution_as_torch_does(self, link: BoardLink, **drawn: Any) -> None:
        groups, samples = drawn["groups"], drawn.pop("samples")
        channels, filters = groups * drawn.pop("deep"), groups * drawn.pop("wide")
        kernel = drawn.pop("kernel")
        torch.manual_seed(0)
        layer = nn.Conv2d(channels, filters, kernel, **drawn)
        program = program_of(layer, samples, channels, 7, 6)
        torch.testing.assert_close(outputs_of(link, program, "python"), program.reference, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5)])
    def test_it_computes_linear_layers_as_torch_does(self, link: BoardLink, shape: tuple[int, ...]) -> None:
        program = program_of(nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 6)), *shape)
        torch.testing.assert_close(outputs_of(link, program, "python"), program.reference)

    @pytest.mark.parametrize(
        "module",
        [
            nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()),
            nn.Conv2d(2, 2, 3, padding="same"),
            nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        ],
        ids=["network", "named padding", "circular padding"],
    )
    def test_it_refuses_the_rest_and_goes_on(self, link: BoardLink, module: nn.Module) -> None:
        with pytest.raises(BoardError, match="'python'"):
            outputs_of(link, program_of(module, 1, 2, 5, 5), "python")
        assert link.ask("state", limit_s=10.0)[0]["status"] == "ok"

    def test_a_block_has_its_times_and_states(self, link: BoardLink) -> None:
        number = link.ask("build", *packed(program_of(cascade(), 1, 6, 7, 7), "python"), limit_s=10.0)[0]["program"]
        seen = link.ask("block", {"program": number, "calls": 3}, limit_s=20.0)[0]
        assert seen["wall_s"] > 0.0
        assert seen["cpu_s"] > 0.0
        assert seen["waited_s"] >= 0.0
        assert {"clock_mhz", "temperature_c", "throttled"} <= set(seen["before"]) & set(seen["after"])

    def test_a_forgotten_program_is_gone(self, link: BoardLink) -> None:
        spec, blobs = packed(program_of(cascade(), 1, 6, 7, 7), "python")
        first = link.ask("build", spec, blobs, limit_s=10.0)[0]["program"]
        link.ask("build", {**spec, "forget": [first]}, blobs, limit_s=10.0)
        with pytest.raises(BoardError, match="KeyError"):
            link.ask("outputs", {"program": first}, limit_s=10.0)


def test_the_board_s_torch_runs_cascades_and_networks() -> None:
    layer = program_of(
        nn.Sequential(*cascade(), nn.Conv2d(5, 5, 3, padding="same", padding_mode="reflect")), 2, 6, 9, 9
    )
    network = program_of(nn.Sequential(cascade(), nn.ReLU(), nn.Flatten(), nn.Linear(75, 3)), 2, 6, 9, 9)
    with contextlib.closing(linked(sys.executable, "torch")) as link:
        for program in (layer, network):
            torch.testing.assert_close(outputs_of(link, program, "torch"), program.reference)


def test_the_board_s_onnxruntime_runs_layers_and_networks() -> None:
    pytest.importorskip("onnxruntime")
    network = program_of(nn.Sequential(cascade(), nn.ReLU(), nn.Flatten(), nn.Linear(75, 3)), 2, 6, 9, 9)
    with contextlib.closing(linked(sys.executable, "onnxruntime")) as link:
        for program in (program_of(cascade(), 2, 6, 9, 9), network):
            found = outputs_of(link, program, "onnxruntime")
            torch.testing.assert_close(found, program.reference, rtol=1e-4, atol=1e-5)


class TestTheStateOfAJetson:
    """No board was at hand: files as JetPack 4 has them on a TX2."""

    @pytest.fixture(autouse=True)
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        files = {
            "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref, EABI: aarch64",
            "proc/device-tree/model": "quill\0",
            "sys/class/devfreq/17000000.gp10b/cur_freq": "1122000000",
            "sys/class/devfreq/17000000.gp10b/min_freq": "1122000000",
            "sys/class/devfreq/17000000.gp10b/max_freq": "1122000000",
            "sys/class/devfreq/1d84000.ufshc/cur_freq": "1",
            "sys/class/thermal/thermal_zone0/temp": "41500",
            "sys/class/thermal/thermal_zone1/temp": "-256000",
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": "3",
            "sys/class/thermal/cooling_device1/type": "gpu-balanced",
            "sys/class/thermal/cooling_device1/cur_state": "0",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1000000",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "bin/nvpmodel": "#!/bin/sh\necho 'NV Fan Mode:quiet'\necho 'NV Power Mode: MAXN'\necho 0",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        (tmp_path / "bin/nvpmodel").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        monkeypatch.setattr(board_agent, "ROOT", str(tmp_path))
        return tmp_path

    def test_it_is_named_and_so_are_its_drivers(self) -> None:
        assert board_agent.device_model() == "quill"
        assert board_agent.drivers() == {"l4t": "32.7.1"}

    def test_clocks_are_those_of_the_part_in_use(self) -> None:
        assert board_agent.clock_mhz([], "cuda:0") == 1122.0
        assert board_agent.clock_mhz([], "cpu") == 1500.0
        assert board_agent.clock_mhz([0], "cpu") == 2000.0

    def test_a_fan_holds_nothing_back(self, root: Path) -> None:
        assert not board_agent.throttled()
        (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1")
        assert board_agent.throttled()

    def test_the_hottest_sensor_that_is_on(self) -> None:
        assert board_agent.temperature_c() == 41.5

    def test_power_modes_differ_by_whether_clocks_are_pinned(self, root: Path) -> None:
        assert board_agent.power_mode() == "MAXN, clocks pinned"
        (root / "sys/class/devfreq/17000000.gp10b/min_freq").write_text("114750000")
        assert board_agent.power_mode() == "MAXN, clocks free"
        (root / "bin/nvpmodel").write_text("#!/bin/sh\nexit 1\n")
        assert board_agent.power_mode() == "schedutil"

    def test_a_machine_that_says_nothing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(board_agent, "ROOT", str(root / "empty"))
        monkeypatch.setenv("PATH", str(root / "empty"))
        assert board_agent.clock_mhz([], "cpu") is board_agent.temperature_c() is board_agent.load([], 0.0) is None
        assert not board_agent.throttled()
        assert board_agent.power_mode() == ""
        assert board_agent.drivers() == {}
        assert board_agent.device_model()


TRTEXEC = """
import json, sys
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # trtexec")
with open({log!r}, "a") as log:
    print(json.dumps(sorted(options)), file=log)
if options.get("onnx") and not open(options["onnx"], "rb").read():
    print("[E] [TRT] ModelImporter.cpp: no model")
    sys.exit(1)
if "exportTimes" in options:
    json.dump([{{"computeMs": 2.0, "latencyMs": 9.0}}] * 5, open(options["exportTimes"], "w"))
if "exportOutput" in options:
    json.dump([{{"name": "outputs", "dimensions": "1x2", "values": [1.5, -2.0]}}], open(options["exportOutput"], "w"))
"""


class TestTrtexec:
    """TensorRT was not at hand: a program of its name, that reads the options and writes the files it documents."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        log, trtexec = tmp_path / "log", tmp_path / "trtexec"
        trtexec.write_text(f"#!{bare_python()}\n" + TRTEXEC.format(log=str(log)))
        trtexec.chmod(0o755)
        return log

    @pytest.fixture
    def link(self, log: Path) -> Iterator[BoardLink]:
        python = f"env PATH={shlex.quote(str(log.parent))}:$PATH {shlex.quote(bare_python())}"
        link = BoardLink(HERE, python, limit_s=30.0, silence_s=60.0)
        yield link
        link.close()

    def build(self, link: BoardLink, onnx: bytes) -> int:
        hello, _ = link.ask(
            "hello", {"backend": "tensorrt", "accelerator": "cuda:0", "precision": "float16"}, limit_s=30
        )
        assert hello["versions"]["tensorrt"] == "8201"
        spec = {"format": "onnx", "shape": [1, 2], "input": "inputs", "output_shape": [1, 2]}
        return int(link.ask("build", spec, [b"\0" * 8, onnx], limit_s=30)[0]["program"])

    def test_times_are_the_gpu_s_and_outputs_those_of_the_engine(self, link: BoardLink, log: Path) -> None:
        number = self.build(link, b"onnx")
        seen = link.ask("block", {"program": number, "calls": 7}, limit_s=30)[0]
        assert seen["wall_s"] == pytest.approx(7 * 2e-3)
        assert "cpu_s" not in seen
        header, [raw] = link.ask("outputs", {"program": number}, limit_s=30)
        assert (header["shape"], board_agent.floats(raw)) == ([1, 2], [1.5, -2.0])
        first, *others = [json.loads(line) for line in log.read_text().splitlines() if "help" not in line]
        assert {"onnx", "saveEngine", "fp16", "device"} <= set(first)
        assert all("loadEngine" in options and "onnx" not in options for options in others)

    def test_what_it_refuses_is_told_in_its_words(self, link: BoardLink) -> None:
        with pytest.raises(BoardError, match=r"trtexec: \[E\] \[TRT\] ModelImporter"):
            self.build(link, b"")


class TestWhatABoardLacks:
    def refusal(self, backend: str, **asked: Any) -> str:
        with pytest.raises(BoardError) as refused:
            linked(bare_python(), backend, **asked)
        assert refused.value.status == "error"
        return str(refused.value)

    def test_a_backend_that_is_not_installed(self) -> None:
        assert "has no torch: ModuleNotFoundError" in self.refusal("torch")

    def test_a_backend_that_nobody_knows(self) -> None:
        assert "known: python, torch, onnxruntime, tensorrt" in self.refusal("tvm")

    def test_a_gpu_for_plain_python(self) -> None:
        assert "the CPU and float32 only" in self.refusal("python", accelerator="cuda:0")

    def test_trtexec(self) -> None:
        assert "no trtexec on the board" in self.refusal("tensorrt", accelerator="cuda:0")


def test_one_agent_at_a_time_has_the_board_s_lease() -> None:
    python = bare_python()
    with contextlib.closing(linked(python, "python", lease_wait_s=5)):
        with contextlib.closing(linked(python, "python")):  # looking is free
            pass
        with pytest.raises(BoardError, match="another agent times something on the board"):
            linked(python, "python", lease_wait_s=0.1)
    linked(python, "python", lease_wait_s=5).close()


class TestTheConnectionEnds:
    def family(self, link: BoardLink) -> list[psutil.Process]:
        """The agent's processes."""
        ssh = psutil.Process(link._process.pid)
        found = [ssh, *ssh.children(recursive=True)]
        assert len(found) >= 2
        return found

    @pytest.mark.parametrize("end", [BoardLink.close, lambda link: link._process.stdin.close()], ids=["kill", "EOF"])
    def test_an_idle_agent_ends(self, end: Callable[[BoardLink], None]) -> None:
        link = linked(bare_python(), "python")
        family = self.family(link)
        end(link)
        assert not await_end(family)

    def test_an_agent_at_work_ends_and_so_does_what_hangs(self) -> None:
        """A convolution that would take minutes: no answer within the limit, and nothing is left of it."""
        link = linked(bare_python(), "python")
        family = self.family(link)
        spec, blobs = packed(
            Program(nn.Conv2d(64, 64, 9, padding=4), torch.zeros(1, 64, 40, 40), torch.zeros(1)), "python"
        )
        number = link.ask("build", spec, blobs, limit_s=30.0)[0]["program"]
        with pytest.raises(LinkLostError, match=r"no answer to `outputs` within 0\.5 s") as late:
            link.ask("outputs", {"program": number}, limit_s=0.5)
        assert late.value.status == "timeout"
        assert not await_end(family)

    def test_silence_ends_it(self) -> None:
        """Of a network that falls away without a word, silence is all there is."""
        link = linked(bare_python(), "python", silence_s=1.0)
        family = self.family(link)
        assert not await_end(family)
        with pytest.raises(LinkLostError, match="the connection ended"):
            link.ask("state", limit_s=5.0)
        link.close()

    def test_a_killed_agent_is_one_line(self) -> None:
        link = linked(bare_python(), "python")
        for process in self.family(link):
            process.kill()
        with pytest.raises(LinkLostError, match="the connection ended") as lost:
            link.ask("state", limit_s=5.0)
        assert lost.value.status == "error"
        assert "\n" not in str(lost.value)


class TestBeforeTheGreeting:
    def test_what_a_login_shell_prints_does_not_matter(self) -> None:
        python = f"printf 'Welcome\\nrankray-agent 1 abc\\nno end of line'; {shlex.quote(bare_python())}"
        with contextlib.closing(BoardLink(HERE, python, limit_s=30.0, silence_s=60.0)) as link:
            assert link.ask("hello", {"backend": "python"}, limit_s=30.0)[0]["status"] == "ok"

    def test_nothing_but_words_is_an_error(self) -> None:
        with pytest.raises(LinkLostError, match="the connection ended: this is no Python"):
            BoardLink(HERE, "echo Welcome; echo this is no Python >&2; true", limit_s=10.0, silence_s=60.0)

    def test_words_without_end_are_a_timeout(self) -> None:
        started = time.monotonic()
        with pytest.raises(LinkLostError, match="no agent answered within 1 s") as late:
            BoardLink(HERE, "yes;", limit_s=1.0, silence_s=60.0)
        assert late.value.status == "timeout"
        assert time.monotonic() - started < 20.0

    def test_no_ssh_at_all(self) -> None:
        with pytest.raises(LinkLostError, match="does not start"):
            BoardLink(["no-such-ssh"], "python3", limit_s=1.0, silence_s=60.0)


def test_prints_of_a_library_do_not_disturb_the_answers(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os\nprint('from Python')\nos.write(1, b'native')\nraise ImportError('odd')\n"
    )
    python = f"env PYTHONPATH={shlex.quote(str(tmp_path))} {shlex.quote(bare_python())}"
    with contextlib.closing(BoardLink(HERE, python, limit_s=30.0, silence_s=60.0)) as link:
        for _ in range(2):
            with pytest.raises(BoardError, match="has no torch: ImportError: odd"):
                link.ask("hello", {"backend": "torch"}, limit_s=30.0)
