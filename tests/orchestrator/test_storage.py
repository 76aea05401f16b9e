"""Storage: a file is whole or what it was before, wherever it lies, and every refusal is one line."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from orchestrator.storage import Storage
from search_spaces.errors import ConfigError, RunStoppedError

LOCAL_AND_OTHER = pytest.mark.parametrize("place", ["local", "mock"])


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A store on the disk, or in pyarrow's file system for tests, which cannot append."""
    place = request.node.callspec.params["place"]
    return Storage(str(tmp_path / "run") if place == "local" else "mock://run")


@LOCAL_AND_OTHER
class TestEveryPlace:
    def test_what_was_written_is_read(self, store: Storage, place: str) -> None:
        store.create()
        store.write("config.yaml", b"one")
        store.write("evaluations/part-000000.parquet", b"\x00\xff")
        assert store.read("config.yaml") == b"one"
        assert store.read("evaluations/part-000000.parquet") == b"\x00\xff"
        assert store.names() == ["config.yaml", "evaluations"]
        assert store.names("evaluations") == ["part-000000.parquet"]

    def test_a_second_write_replaces_the_first(self, store: Storage, place: str) -> None:
        store.create()
        store.write("state.json", b"a long first version")
        store.write("state.json", b"short")
        assert store.read("state.json") == b"short"
        assert store.names() == ["state.json"]

    def test_what_is_not_there(self, store: Storage, place: str) -> None:
        assert store.names() == []
        assert store.names("evaluations") == []
        assert not store.exists("config.yaml")
        with pytest.raises(FileNotFoundError):
            store.read("config.yaml")

    def test_a_folder_is_no_file(self, store: Storage, place: str) -> None:
        store.create()
        store.write("evaluations/x", b"")
        assert store.exists("evaluations/x")
        assert not store.exists("evaluations")

    def test_renaming(self, store: Storage, place: str) -> None:
        store.create()
        store.write("a", b"1")
        store.rename("a", "b")
        assert (store.exists("a"), store.read("b")) == (False, b"1")

    def test_creating_where_something_is_names_the_place(self, store: Storage, place: str) -> None:
        store.create()
        store.create()  # empty still
        store.write("config.yaml", b"")
        with pytest.raises(ConfigError, match=r"^--run-dir: .* exists and is not empty; choose another, or .*resume"):
            store.create()

    def test_creating_leaves_nothing_behind_but_the_folder(self, store: Storage, place: str) -> None:
        store.create()
        assert store.names() == []

    def test_appending_works_on_a_disk_alone(self, store: Storage, place: str) -> None:
        store.create()
        assert store.append("evaluations/journal.jsonl", b"one\n") == (place == "local")
        store.append("evaluations/journal.jsonl", b"two\n")
        if place == "local":
            assert store.read("evaluations/journal.jsonl") == b"one\ntwo\n"
        else:
            assert store.names() == []


class TestAtomic:
    def test_killed_before_the_rename_the_old_content_stays(self, tmp_path: Path) -> None:
        Storage(str(tmp_path)).write("state.json", b"old")
        killed = f"""
            import os, signal
            from orchestrator.storage import Storage
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            Storage({str(tmp_path)!r}).write("state.json", b"new")
        """
        program = "\n".join(line.strip() for line in killed.splitlines())
        done = subprocess.run([sys.executable, "-c", program], timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert Storage(str(tmp_path)).read("state.json") == b"old"
        Storage(str(tmp_path)).write("state.json", b"newer")  # what the killed one left is in nobody's way
        assert Storage(str(tmp_path)).read("state.json") == b"newer"

    def test_a_rename_that_fails_leaves_the_old_content_and_no_litter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        store = Storage(str(tmp_path))
        store.write("state.json", b"old")
        monkeypatch.setattr(os, "replace", fails)
        with pytest.raises(RunStoppedError, match=r"state\.json: cannot be written: Input/output error"):
            store.write("state.json", b"new")
        assert (store.read("state.json"), store.names()) == (b"old", ["state.json"])


class TestNotWritable:
    """Permissions do not bind root: a place below a file, and one in /proc, refuse everybody."""

    @pytest.mark.parametrize("below", ["", "/run", "/deep/run"])
    def test_below_a_file(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigError, match=r"^--run-dir: .*file\S* cannot be (read|written to): Not a directory$"):
            Storage(f"{tmp_path}/file{below}").create()

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
    def test_in_proc(self) -> None:
        with pytest.raises(ConfigError, match=r"^--run-dir: /proc/no/run cannot be written to: "):
            Storage("/proc/no/run").create()

    @pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
    def test_without_permission(self, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="Permission denied"):
            Storage(f"{tmp_path}/closed/run").create()


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A disk of 64 KiB."""
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
        if mounted.returncode:
            pytest.skip("a small disk can only be mounted by root")
        yield tmp_path
        subprocess.run(["umount", tmp_path], check=True)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    def test_appending_stops_the_run_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "journal.jsonl").symlink_to("/dev/full")
        with pytest.raises(RunStoppedError) as caught:
            Storage(str(tmp_path)).append("journal.jsonl", b"row\n")
        assert "journal.jsonl: cannot be written: no space left on the device; " in str(caught.value)
        assert f"`rankray resume {tmp_path}`" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_appending_never_stops_half_way_in_silence(self, small_disk: Path) -> None:
        # The first 64 KiB fit, and the system call is content with that.
        with pytest.raises(RunStoppedError, match="no space left on the device"):
            Storage(str(small_disk)).append("journal.jsonl", b"x" * 100_000)

    def test_writing_keeps_the_old_content_and_gives_the_space_back(self, small_disk: Path) -> None:
        store = Storage(str(small_disk))
        store.write("state.json", b"old")
        with pytest.raises(RunStoppedError, match="no space left on the device"):
            store.write("state.json", b"x" * 100_000)
        assert (store.read("state.json"), store.names()) == (b"old", ["state.json"])
        store.write("state.json", b"x" * 10_000)


class TestURIs:
    def test_a_file_uri_is_local(self, tmp_path: Path) -> None:
        assert Storage(f"file://{tmp_path}/run").local == tmp_path / "run"
        assert Storage("mock://run").local is None

    @pytest.mark.parametrize("location", ["foo://bucket/run", "abfs://container/run", "file://host/run"])
    def test_one_that_pyarrow_does_not_know(self, location: str) -> None:
        with pytest.raises(ConfigError, match=rf"^--run-dir: '{location}' is no place to store a run: ") as caught:
            Storage(location)
        assert "\n" not in str(caught.value)

    def test_one_with_a_password_is_refused_without_repeating_it(self) -> None:
        with pytest.raises(ConfigError, match="give it in the environment") as caught:
            Storage("s3://user:hunter2@bucket/run?region=us-east-1")
        assert "hunter2" not in str(caught.value)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server on loopback with an empty bucket: a URI that a run name fits into."""
    pytest.importorskip("moto.server", reason="needs moto, an S3 server for tests")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        try:
            _create_bucket(port, server)
            yield f"s3://bucket/%s?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        finally:
            server.kill()
            server.wait()


def _create_bucket(port: int, server: subprocess.Popen[bytes], patience_s: float = 60.0) -> None:
    from pyarrow import fs

    started = time.monotonic()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() - started < patience_s, "the S3 server does not answer"
            time.sleep(0.1)
    options = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir("bucket")


class TestS3:
    def test_a_run_directory_in_a_bucket(self, bucket: str) -> None:
        store = Storage(bucket % "runs/r20")
        store.create()
        store.write("evaluations/part-000000.parquet", b"rows")
        store.write("state.json", b"old")
        store.write("state.json", b"new")
        again = Storage(bucket % "runs/r20")
        assert again.names() == ["evaluations", "state.json"]
        assert (again.read("state.json"), again.read("evaluations/part-000000.parquet")) == (b"new", b"rows")
        assert again.append("evaluations/journal.jsonl", b"row\n") is False
        again.rename("state.json", "former.json")
        assert (again.exists("state.json"), again.exists("former.json")) == (False, True)
        with pytest.raises(FileNotFoundError):
            again.read("state.json")
        with pytest.raises(ConfigError, match="exists and is not empty"):
            again.create()

    def test_a_bucket_that_is_not_there(self, bucket: str) -> None:
        store = Storage((bucket % "run").replace("bucket", "elsewhere"))
        with pytest.raises(ConfigError, match=r"^--run-dir: s3://elsewhere/run\S+ cannot be written to: ") as caught:
            store.create()
        assert "\n" not in str(caught.value)

    def test_a_server_that_lets_nobody_in(self, bucket: str, forbidden: int) -> None:
        store = Storage(f"s3://bucket/run?endpoint_override=127.0.0.1:{forbidden}&scheme=http&region=us-east-1")
        for asks in (store.names, lambda: store.exists("x"), lambda: store.read("x")):
            with pytest.raises(ConfigError, match=r"cannot be read: .*ACCESS_DENIED") as caught:
                asks()
            assert "\n" not in str(caught.value)
        with pytest.raises(RunStoppedError, match=r"cannot be written: .*ACCESS_DENIED"):
            store.write("x", b"")

    @pytest.fixture
    def forbidden(self) -> Iterator[int]:
        """The port of a server that answers everything with 403."""

        class Forbid(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Forbid) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_port
            server.shutdown()
