# ruff: noqa: B905, UP006, UP032, UP035, UP045
# A board may have nothing newer than Python 3.6: no `list[int]`, no `text=`, no strict `zip`, no annotations as text.
"""The agent on a board: builds what a host sends, runs it, says how long that took. It decides nothing.

One file on purpose: the host sends its source over ssh, nothing is installed. It needs Python 3.6, its standard library
and what the board has anyway (torch 1.8 or later, onnxruntime, or TensorRT's `trtexec`).

A request and an answer look alike: one line of JSON, whose `blobs` says how many bytes each of the raw parts has that
follow it. Numbers in them are little-endian float32. The first line is a greeting with the host's token: what a login
shell prints before it does not matter, and whatever a library prints later goes to standard error.

The agent ends with its connection, and so does all that it started: one process watches the connection and nothing
else, so that not even a call that never returns survives it.
"""

import array
import contextlib
import fcntl
import gc
import glob
import io
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any, Callable, Dict, List, Optional, Sequence, Tuple

VERSION = 1
ROOT = ""  # before every path of the system's; tests have another

Json = Dict[str, Any]
Blobs = List[bytes]
Floats = List[float]

_GPU = re.compile(r"(gpu|gp10b|gv11b|ga10b|gm20b)$")  # how Tegra kernels name it among devfreq's devices
_HOLDS_BACK = re.compile(
    r"cpu|gpu|processor|throttle|balanced", re.I
)  # cooling devices that cost speed; a fan does not
_CORE_CLOCK = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
_POLLRDHUP = 0x2000  # Linux's value; Python 3.6 has no name for it


class RefusedError(Exception):
    """What the host is told instead of an answer: a status of its measurements and one line."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


# ---------------------------------------------------------------------------------------------------------------- words


def send(stream: IO[bytes], header: Json, blobs: Sequence[bytes] = ()) -> None:
    """Writes one request or answer."""
    line = json.dumps(dict(header, blobs=[len(blob) for blob in blobs])) + "\n"
    stream.write(line.encode() + b"".join(blobs))
    stream.flush()


def receive(stream: IO[bytes]) -> Optional[Tuple[Json, Blobs]]:
    """Reads one request or answer; None where the connection ended, be it in the middle of one."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line.decode())
    sizes = header.pop("blobs")
    blobs = [stream.read(size) for size in sizes]
    return (header, blobs) if [len(blob) for blob in blobs] == sizes else None


def floats(raw: bytes) -> Floats:
    """Numbers of raw little-endian float32."""
    values = array.array("f")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def raw(values: Floats) -> bytes:
    """The reverse of `floats`."""
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# --------------------------------------------------------------------------------------------------- state of the board


def read(path: str) -> str:
    """A small file's text, or nothing where it cannot be read."""
    try:
        with open(ROOT + path, errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return ""


def matching(pattern: str) -> List[str]:
    """Files and folders."""
    return sorted(path[len(ROOT) :] for path in glob.glob(ROOT + pattern))


def numbers(pattern: str) -> List[int]:
    """Whole numbers in the files of a pattern, as far as they can be read."""
    texts = [read(path) for path in matching(pattern)]
    return [int(text) for text in texts if re.match(r"-?\d+$", text)]


def device_model() -> str:
    """What the board physically is."""
    cpu = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", read("/proc/cpuinfo"), re.M)
    return read("/proc/device-tree/model") or (cpu.group(1) if cpu else platform.machine())


def drivers() -> Dict[str, str]:
    """Version of NVIDIA's drivers on a Jetson (`# R32 (release), REVISION: 7.1, ...`)."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read("/etc/nv_tegra_release"))
    return {"l4t": ".".join(found.groups())} if found else {}


def power_mode() -> str:
    """Jetson's power mode, and whether `jetson_clocks` pins clocks to its ceiling; else the governors of the cores."""
    try:
        asked = subprocess.run(["nvpmodel", "-q"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
        mode = re.search(r"NV Power Mode:\s*(\S+)", asked.stdout.decode(errors="replace"))
    except (OSError, subprocess.SubprocessError):
        mode = None
    if mode:
        lowest, highest = gpu_rates("min_freq"), gpu_rates("max_freq")
        return "{}, clocks {}".format(mode.group(1), "pinned" if lowest and lowest == highest else "free")
    paths = matching("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return ", ".join(sorted({read(path) for path in paths} - {""}))


def gpu_rates(name: str) -> List[int]:
    """Frequencies in Hz of a Tegra's GPU: `cur_freq`, `min_freq`, `max_freq`."""
    paths = [path for path in matching("/sys/class/devfreq/*") if _GPU.search(path)]
    return [rate for path in paths for rate in numbers(os.path.join(path, name))]


def clock_mhz(cores: Sequence[int], accelerator: str) -> Optional[float]:
    """Of the GPU where one is used, else of the cores on average."""
    if accelerator != "cpu":
        rates = gpu_rates("cur_freq")
        return max(rates) / 1e6 if rates else None
    names = [str(core) for core in cores] or ["[0-9]*"]
    rates = [rate for name in names for rate in numbers(_CORE_CLOCK.format(name))]
    return sum(rates) / 1e3 / len(rates) if rates else None


def temperature_c() -> Optional[float]:
    """Of the hottest sensor; sensors that are off say something below zero."""
    found = [value / 1e3 for value in numbers("/sys/class/thermal/thermal_zone*/temp") if value > 0]
    return max(found) if found else None


def throttled() -> bool:
    """Whether something other than a fan cools the board now."""
    devices = matching("/sys/class/thermal/cooling_device*")
    return any(_HOLDS_BACK.search(read(path + "/type")) and max([0, *numbers(path + "/cur_state")]) for path in devices)


def busy_and_all(cores: Sequence[int]) -> Tuple[int, int]:
    """Ticks that the cores worked and that passed, so far."""
    busy, passed = 0, 0
    for name, rest in re.findall(r"^cpu(\d+) (.+)$", read("/proc/stat"), re.M):
        if not cores or int(name) in cores:
            ticks = [int(field) for field in rest.split()]
            busy += sum(ticks[:3]) + sum(ticks[5:8])
            passed += sum(ticks[:8])
    return busy, passed


def waiting_s() -> float:
    """Seconds that threads of this process were runnable without a processor, so far; 0 where nobody says."""
    texts = [read(path).split() for path in matching("/proc/self/task/*/schedstat")]
    return sum(int(fields[1]) for fields in texts if len(fields) == 3) / 1e9


def load(cores: Sequence[int], seconds: float) -> Optional[float]:
    """Share of the cores that others use while this process sleeps."""
    before = busy_and_all(cores)
    time.sleep(seconds)
    after = busy_and_all(cores)
    return (after[0] - before[0]) / float(after[1] - before[1]) if after[1] > before[1] else None


# ------------------------------------------------------------------------------------------------------------- backends
#
# A backend is made of settings, and has `versions()` and `build(spec, blobs)`, which gives a `Program`.


class Settings:
    """How the host wants everything on this connection to be run."""

    def __init__(self, asked: Json) -> None:
        self.backend = str(asked["backend"])
        self.accelerator = str(asked.get("accelerator", "cpu"))
        self.precision = str(asked.get("precision", "float32"))
        self.threads = int(asked.get("threads", 1))
        self.cores = [int(core) for core in asked.get("cores", ())]


class Program:
    """Something built: `run` takes a number of calls and gives their seconds, `outputs` gives shape and numbers."""

    def __init__(self, run: Callable[[int], float], outputs: Callable[[], Tuple[List[int], Floats]]) -> None:
        self.run, self.outputs = run, outputs


def wall(call: Callable[[], Any]) -> Callable[[int], float]:
    """Seconds of so many calls, by the wall clock; the garbage collector waits meanwhile."""

    def run(calls: int) -> float:
        gc.disable()
        try:
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return time.perf_counter() - start
        finally:
            gc.enable()

    return run


class Interpreter:
    """Convolutions in plain Python: honest, and thousands of times slower than anything a board would be used with."""

    def __init__(self, settings: Settings) -> None:
        if settings.accelerator != "cpu" or settings.precision != "float32":
            raise RefusedError("error", "the backend 'python' knows the CPU and float32 only")

    def versions(self) -> Dict[str, str]:
        """Nothing but the interpreter, that the agent tells anyway."""
        return {}

    def build(self, spec: Json, blobs: Blobs) -> Program:
        """Of a cascade."""
        if spec["format"] != "cascade":
            raise RefusedError("error", "the backend 'python' runs cascades of Conv2d and Linear only")
        stages = [(stage, floats(weight), floats(bias)) for stage, weight, bias in parts(spec, blobs)]
        for stage, _, _ in stages:
            if stage.get("padding_mode", "zeros") != "zeros" or isinstance(stage.get("padding"), str):
                raise RefusedError("error", "the backend 'python' knows padding by numbers and with zeros only")
        inputs = floats(blobs[0])

        def outputs() -> Tuple[List[int], Floats]:
            shape, values = list(spec["shape"]), inputs
            for stage, weight, bias in stages:
                shape, values = (linear if stage["linear"] else convolution)(shape, values, stage, weight, bias)
            return shape, values

        return Program(wall(outputs), outputs)


def linear(shape: List[int], values: Floats, stage: Json, weight: Floats, bias: Floats) -> Tuple[List[int], Floats]:
    """A linear stage over the last dimension."""
    width = shape[-1]
    rows = [values[at : at + width] for at in range(0, len(values), width)]
    columns = [weight[at : at + width] for at in range(0, len(weight), width)]
    offsets = bias or [0.0] * len(columns)
    out = [sum(map(float.__mul__, row, column), offset) for row in rows for column, offset in zip(columns, offsets)]
    return [*shape[:-1], len(columns)], out


def convolution(
    shape: List[int], values: Floats, stage: Json, weight: Floats, bias: Floats
) -> Tuple[List[int], Floats]:
    """A convolutional stage on `(samples, channels, height, width)`, in the order of its definition."""
    samples, channels, height, width = shape
    (kernel_y, kernel_x), (stride_y, stride_x) = stage["kernel"], stage["stride"]
    (pad_y, pad_x), (dilation_y, dilation_x) = stage["padding"], stage["dilation"]
    groups, filters = stage["groups"], stage["out_channels"]
    out_y = (height + 2 * pad_y - dilation_y * (kernel_y - 1) - 1) // stride_y + 1
    out_x = (width + 2 * pad_x - dilation_x * (kernel_x - 1) - 1) // stride_x + 1
    deep = channels // groups
    out = []  # type: Floats
    for sample in range(samples):
        for filter_ in range(filters):
            first = sample * channels + filter_ // (filters // groups) * deep
            for top in range(-pad_y, out_y * stride_y - pad_y, stride_y):
                for left in range(-pad_x, out_x * stride_x - pad_x, stride_x):
                    total, at = bias[filter_] if bias else 0.0, filter_ * deep * kernel_y * kernel_x
                    for channel in range(first, first + deep):
                        for y in range(top, top + kernel_y * dilation_y, dilation_y):
                            for x in range(left, left + kernel_x * dilation_x, dilation_x):
                                if 0 <= y < height and 0 <= x < width:
                                    total += weight[at] * values[(channel * height + y) * width + x]
                                at += 1
                    out.append(total)
    return [samples, filters, out_y, out_x], out


def parts(spec: Json, blobs: Blobs) -> List[Tuple[Json, bytes, bytes]]:
    """Stages of a cascade with their weights and (maybe empty) biases, that follow the inputs."""
    return list(zip(spec["stages"], blobs[1::2], blobs[2::2]))


class Torch:
    """The board's own torch, on its CPU or GPU."""

    def __init__(self, settings: Settings) -> None:
        self.torch = imported("torch")
        self.settings = settings
        self.dtype = getattr(self.torch, settings.precision)
        self.torch.set_num_threads(settings.threads)
        self.torch.set_grad_enabled(False)
        self.torch.backends.cudnn.allow_tf32 = self.torch.backends.cuda.matmul.allow_tf32 = (
            False  # float32 is asked for
        )
        if settings.accelerator != "cpu" and not self.torch.cuda.is_available():
            raise RefusedError("error", "torch on the board sees no CUDA device")

    def versions(self) -> Dict[str, str]:
        """Of torch and of the CUDA and cuDNN that it was built with."""
        found = {"torch": self.torch.__version__}
        if self.settings.accelerator != "cpu":
            found.update(cuda=str(self.torch.version.cuda), cudnn=str(self.torch.backends.cudnn.version()))
        return found

    def build(self, spec: Json, blobs: Blobs) -> Program:
        """Of a cascade, as its own layers, or of a TorchScript file."""
        if spec["format"] == "cascade":
            module = self.torch.nn.Sequential(*[self._layer(*part) for part in parts(spec, blobs)])
        elif spec["format"] == "torchscript":
            module = self.torch.jit.load(io.BytesIO(blobs[1]), map_location="cpu")
        else:
            raise RefusedError("error", "the backend 'torch' takes cascades and TorchScript")
        module = module.eval().to(self.settings.accelerator, self.dtype)
        inputs = self._tensor(blobs[0], spec["shape"]).to(self.settings.accelerator, self.dtype)

        def outputs() -> Tuple[List[int], Floats]:
            result = module(inputs).float().cpu()
            return list(result.shape), result.reshape(-1).tolist()

        timer = wall if self.settings.accelerator == "cpu" else self._events
        return Program(timer(lambda: module(inputs)), outputs)

    def _events(self, call: Callable[[], Any]) -> Callable[[int], float]:
        """Seconds between two events, which the GPU itself notes; a block begins on an idle one."""
        cuda = self.torch.cuda

        def run(calls: int) -> float:
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            with cuda.device(self.settings.accelerator):
                cuda.synchronize()
                start.record()
                for _ in range(calls):
                    call()
                end.record()
                cuda.synchronize()
            return float(start.elapsed_time(end)) / 1e3

        return run

    def _layer(self, stage: Json, weight: bytes, bias: bytes) -> Any:
        nn, sizes = self.torch.nn, (stage["in_channels"], stage["out_channels"])
        if stage["linear"]:
            layer = nn.Linear(*sizes, bias=bool(bias))
        else:
            names = ("stride", "padding", "dilation")
            options = {name: tuple(stage[name]) if isinstance(stage[name], list) else stage[name] for name in names}
            options.update(groups=stage["groups"], padding_mode=stage["padding_mode"], bias=bool(bias))
            layer = nn.Conv2d(*sizes, kernel_size=tuple(stage["kernel"]), **options)
        layer.weight.copy_(self._tensor(weight, layer.weight.shape))
        if bias:
            layer.bias.copy_(self._tensor(bias, layer.bias.shape))
        return layer

    def _tensor(self, blob: bytes, shape: Sequence[int]) -> Any:
        return self.torch.tensor(floats(blob), dtype=self.torch.float32).reshape(tuple(shape))


class OnnxRuntime:
    """The board's own onnxruntime; on a GPU through TensorRT where it was built with it, else through CUDA."""

    def __init__(self, settings: Settings) -> None:
        if settings.precision != "float32":
            raise RefusedError("error", "the backend 'onnxruntime' on a board runs float32 only")
        self.runtime, self.numpy, self.settings = imported("onnxruntime"), imported("numpy"), settings
        wanted = ["CPUExecutionProvider"]
        if settings.accelerator != "cpu":
            wanted = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
        self.providers = [name for name in wanted if name in self.runtime.get_available_providers()][:1]
        if not self.providers:
            raise RefusedError("error", "onnxruntime on the board was built without " + " and ".join(wanted))

    def versions(self) -> Dict[str, str]:
        """Of onnxruntime, with its provider."""
        return {"onnxruntime": self.runtime.__version__, "provider": self.providers[0]}

    def build(self, spec: Json, blobs: Blobs) -> Program:
        """A session of an ONNX file; its calls copy inputs and outputs."""
        if spec["format"] != "onnx":
            raise RefusedError("error", "the backend 'onnxruntime' takes ONNX")
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.settings.threads, 1
        session = self.runtime.InferenceSession(blobs[1], options, providers=self.providers)
        if session.get_providers()[0] != self.providers[0]:  # it falls back to the CPU with nothing but a warning
            raise RefusedError("error", "onnxruntime cannot use {} on the board".format(self.providers[0]))
        values = self.numpy.array(floats(blobs[0]), dtype="float32").reshape(spec["shape"])
        feed = {session.get_inputs()[0].name: values}

        def outputs() -> Tuple[List[int], Floats]:
            result = session.run(None, feed)[0]
            return list(result.shape), result.reshape(-1).tolist()

        return Program(wall(lambda: session.run(None, feed)), outputs)


class TensorRT:
    """TensorRT's own `trtexec`: a process that builds an engine, and one a time that runs it."""

    _FOLDERS = ("/usr/src/tensorrt/bin", "/usr/local/tensorrt/bin")  # JetPack keeps it off the path
    _FLAGS = {"float32": "--noTF32", "float16": "--fp16", "bfloat16": "--bf16"}
    _ONCE = ("--iterations=1", "--duration=0", "--warmUp=0")

    def __init__(self, settings: Settings) -> None:
        if settings.accelerator == "cpu":
            raise RefusedError("error", "the backend 'tensorrt' needs an accelerator such as cuda:0")
        found = shutil.which("trtexec", path=os.pathsep.join((os.environ.get("PATH", ""), *self._FOLDERS)))
        if not found:
            raise RefusedError("error", "no trtexec on the board: neither on its PATH nor in " + self._FOLDERS[0])
        self.command = [found, "--device=" + (settings.accelerator.partition(":")[2] or "0")]
        self.precision = self._FLAGS[settings.precision]

    def versions(self) -> Dict[str, str]:
        """Of TensorRT, as trtexec's first line has it (`[TensorRT v8201]`)."""
        shown = subprocess.run([self.command[0], "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        version = re.search(r"TensorRT v(\d+)", shown.stdout.decode(errors="replace"))
        return {"tensorrt": version.group(1) if version else "unknown"}

    def build(self, spec: Json, blobs: Blobs) -> Program:
        """An engine of an ONNX file."""
        if spec["format"] != "onnx":
            raise RefusedError("error", "the backend 'tensorrt' takes ONNX")
        folder = tempfile.TemporaryDirectory(prefix="rankray-")

        def path(name: str) -> str:
            return os.path.join(folder.name, name)  # the folder goes when the program goes

        for name, blob in (("inputs", blobs[0]), ("onnx", blobs[1])):
            with open(path(name), "wb") as file:
                file.write(blob)
        # One short inference: what skips it is called --buildOnly or --skipInference, as the version has it.
        self._run("--onnx=" + path("onnx"), "--saveEngine=" + path("engine"), self.precision, *self._ONCE)
        loaded, times = "--loadEngine=" + path("engine"), []  # type: str, Floats

        def run(calls: int) -> float:
            """The next calls that trtexec timed; it is started again when they are used up."""
            while len(times) < calls:
                self._run(loaded, "--duration=3", "--warmUp=200", "--exportTimes=" + path("times"))
                times.extend(float(one["computeMs"]) / 1e3 for one in parsed(path("times")))
            taken = times[:calls]
            del times[:calls]
            return sum(taken)

        def outputs() -> Tuple[List[int], Floats]:
            inputs = "--loadInputs={}:{}".format(spec["input"], path("inputs"))
            self._run(loaded, inputs, "--exportOutput=" + path("outputs"), *self._ONCE)
            values = parsed(path("outputs"))[0]["values"]
            return list(spec["output_shape"]), [float(value) for value in values]

        return Program(run, outputs)

    def _run(self, *options: str) -> None:
        done = subprocess.run(
            [*self.command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
        if done.returncode:
            said = [line for line in done.stdout.decode(errors="replace").splitlines() if "[E]" in line]
            raise RefusedError("error", "trtexec: " + (said[0] if said else "status {}".format(done.returncode)))


def parsed(path: str) -> Any:
    """A JSON file."""
    with open(path) as file:
        return json.load(file)


BACKENDS = {
    "python": Interpreter,
    "torch": Torch,
    "onnxruntime": OnnxRuntime,
    "tensorrt": TensorRT,
}  # type: Dict[str, Callable[[Settings], Any]]


def imported(name: str) -> Any:
    """A module of the board's own."""
    try:
        return __import__(name)
    except Exception as error:  # a torch for another CUDA fails with OSError
        raise RefusedError(
            "error", "the board's {} has no {}: {}".format(sys.executable, name, one_line(error))
        ) from error


# ------------------------------------------------------------------------------------------------------------- requests


class Agent:
    """Answers requests; each method of `ANSWERS` takes a request's header and blobs and gives the answer's."""

    def __init__(self) -> None:
        self.lease = None  # type: Optional[IO[str]]
        self.programs, self.built = {}, 0  # type: Dict[int, Program], int

    def hello(self, asked: Json, blobs: Blobs) -> Tuple[Json, Blobs]:
        """Leases the board if asked to, pins this process, loads the backend: once, before any heavy import."""
        self.settings = settings = Settings(asked)
        if "lease_wait_s" in asked:
            self.lease = lease(float(asked["lease_wait_s"]))
        if settings.backend not in BACKENDS:
            raise RefusedError(
                "error", "a board has no backend {!r}; known: {}".format(settings.backend, ", ".join(BACKENDS))
            )
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(settings.threads)
        if settings.cores:
            os.sched_setaffinity(0, settings.cores)
        self.backend = BACKENDS[settings.backend](settings)
        versions = dict(
            self.backend.versions(), python=platform.python_version(), kernel=platform.release(), **drivers()
        )
        return {"model": device_model(), "node": platform.node(), "versions": versions, "state": self._state(0.2)}, []

    def state(self, asked: Json, blobs: Blobs) -> Tuple[Json, Blobs]:
        """The board's state now, with the load over some seconds."""
        return {"state": self._state(float(asked.get("seconds", 0.2))), "time": time.time()}, []

    def build(self, asked: Json, blobs: Blobs) -> Tuple[Json, Blobs]:
        """Forgets programs and builds one; it is known by its number."""
        for number in asked.get("forget", ()):
            self.programs.pop(number, None)
        self.built += 1
        self.programs[self.built] = self.backend.build(asked, blobs)
        return {"program": self.built}, []

    def outputs(self, asked: Json, blobs: Blobs) -> Tuple[Json, Blobs]:
        """One call of a program and its outputs."""
        shape, values = self.programs[asked["program"]].outputs()
        return {"shape": shape}, [raw(values)]

    def block(self, asked: Json, blobs: Blobs) -> Tuple[Json, Blobs]:
        """So many calls: seconds by the backend's clock, of the processor, and of threads that waited for one."""
        run, calls = self.programs[asked["program"]].run, int(asked["calls"])
        run(1)  # whoever was timed before has left its own data in the caches
        before = self._state()
        cpu, waited = time.process_time(), waiting_s()
        seconds = run(calls)
        cpu, waited = time.process_time() - cpu, waiting_s() - waited
        processor = {"cpu_s": cpu, "waited_s": waited} if self.settings.accelerator == "cpu" else {}
        return dict(processor, wall_s=seconds, before=before, after=self._state()), []

    ANSWERS = {"hello": hello, "state": state, "build": build, "outputs": outputs, "block": block}

    def _state(self, seconds: float = 0.0) -> Json:
        cores, accelerator = self.settings.cores, self.settings.accelerator
        return {
            "clock_mhz": clock_mhz(cores, accelerator),
            "temperature_c": temperature_c(),
            "load": load(cores, seconds) if seconds else None,
            "power_mode": power_mode() if seconds else None,  # asking nvpmodel takes long
            "throttled": throttled(),
        }


def lease(wait_s: float) -> IO[str]:
    """A lock on the board itself, against agents of other hosts: held until this process ends, however it does."""
    common = "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()  # whatever TMPDIR a user has
    path = os.path.join(os.environ.get("RANKRAY_LEASES") or common, "rankray-board.lease")
    try:  # in a sticky folder, the kernel may forbid to open another user's file for creation
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    file = os.fdopen(descriptor)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() >= until:
                raise RefusedError(
                    "error", "another agent times something on the board (lock {})".format(path)
                ) from None
            time.sleep(0.05)


def one_line(error: BaseException) -> str:
    """Type and first line of an error."""
    return "{}: {}".format(type(error).__name__, (str(error).splitlines() or [""])[0])


def serve(requests: IO[bytes], answers: IO[bytes], heard: Callable[[], Any]) -> None:
    """Answers requests until there are no more; a failure is an answer too."""
    agent = Agent()
    while True:
        request = receive(requests)
        if request is None:
            return
        heard()
        header, blobs = request
        try:
            answer, parts_ = Agent.ANSWERS[header["do"]](agent, header, blobs)
            send(answers, dict(answer, status="ok"), parts_)
        except RefusedError as error:
            send(answers, {"status": error.status, "reason": str(error)})
        except Exception as error:
            send(answers, {"status": "error", "reason": one_line(error)})


# ----------------------------------------------------------------------------------------------- life with a connection


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent is gone; elsewhere nothing is asked."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass


def watch(worker: int, heard: int, silence_s: float) -> None:
    """Waits for the worker, or kills it and all it started: when the connection ends, or brings no request for long.

    Args:
        worker: leader of the process group.
        heard: descriptor with one byte per request.
        silence_s: of a network that fell away without a word, no more is to be noticed than silence.
    """
    poller = select.poll()
    poller.register(0, _POLLRDHUP)  # hanging up is always told; what was sent is the worker's to read
    poller.register(heard, select.POLLIN)
    last = time.monotonic()
    while True:
        for descriptor, events in poller.poll(500):
            if descriptor == heard and events & select.POLLIN:
                os.read(heard, 4096)
                last = time.monotonic()
            elif descriptor == heard:  # the worker has ended
                poller.unregister(heard)
            else:
                last = -float("inf")
        done = os.waitpid(worker, os.WNOHANG)[0]
        if done or time.monotonic() - last > silence_s:
            with contextlib.suppress(OSError):
                os.killpg(worker, signal.SIGKILL)
            os._exit(0)


def main(token: str, silence_s: float) -> None:
    """Greets, then serves on the standard streams until the connection ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    reading, writing = os.pipe()
    worker = os.fork()
    if worker:
        answers.close()
        os.close(writing)
        watch(worker, reading, silence_s)
    os.close(reading)
    os.setpgid(0, 0)
    die_with_parent()
    answers.write("\nrankray-agent {} {}\n".format(VERSION, token).encode())
    answers.flush()
    serve(sys.stdin.buffer, answers, lambda: os.write(writing, b"."))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
