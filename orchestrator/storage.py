"""Files of a run directory, local or at any `pyarrow.fs` URI: whole ones atomically, appending where possible."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from search_spaces.errors import ConfigError, RunStoppedError

__all__ = ["Storage", "below"]


class Storage:
    """A folder of named files.

    Args:
        location: a local path, or a URI such as `s3://bucket/runs/r20` or `gs://...`.
        key: what to call it in messages (`--run-dir`).
        again: the command that goes on once a failed write was mended, for messages.

    Raises:
        ConfigError: a URI that pyarrow does not know, or one with a password in it.
    """

    def __init__(self, location: str, key: str = "--run-dir", again: str | None = None) -> None:
        if "://" in location and "@" in urlsplit(location).netloc:
            # Messages, reports and results repeat the location.
            raise ConfigError(
                key, "holds a user name or password; give it in the environment (AWS_ACCESS_KEY_ID and the like)"
            )
        self.location, self._key = location, key
        self._again = again or f"rankray resume {location}"
        try:
            if "://" in location:
                self._files, self._root = fs.FileSystem.from_uri(location)
            else:
                self._files, self._root = fs.LocalFileSystem(), str(Path(location).absolute())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ConfigError(key, f"{location!r} is no place to store a run: {_reason(error)}") from None

    @property
    def name(self) -> str:
        """The folder's own name, without what leads to it and without a URI's options."""
        return str(self._root).rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The folder's path where it is local."""
        return Path(self._root) if isinstance(self._files, fs.LocalFileSystem) else None

    def create(self) -> None:
        """Makes the folder and proves that it can be written to.

        Raises:
            ConfigError: it holds something already, or cannot be written to.
        """
        self.check_empty()
        try:
            self._files.create_dir(self._root, recursive=True)
            probe = f"{self._root}/.probe"
            with self._files.open_output_stream(probe) as stream:
                stream.write(b"x")
            self._files.delete_file(probe)
        except OSError as error:
            raise ConfigError(self._key, f"{self.location} cannot be written to: {_reason(error)}") from None

    def check_empty(self) -> None:
        """Returns if nothing is there yet.

        Raises:
            ConfigError: something is.
        """
        if self.names():
            raise ConfigError(
                self._key, f"{self.location} exists and is not empty; choose another, or go on with `rankray resume`"
            )

    def names(self, folder: str = "") -> list[str]:
        """Names of the files in a folder, relative to it; empty where there is no such folder."""
        selector = fs.FileSelector(f"{self._root}/{folder}".rstrip("/"), allow_not_found=True)
        try:
            found = self._files.get_file_info(selector)
        except OSError as error:
            raise self._unreadable(error) from None
        return sorted(info.base_name for info in found)

    def exists(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            ConfigError: the place cannot be reached.
        """
        try:
            return bool(self._files.get_file_info(f"{self._root}/{name}").type == fs.FileType.File)
        except OSError as error:
            raise self._unreadable(error) from None

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
            ConfigError: it cannot be read.
        """
        try:
            with self._files.open_input_stream(f"{self._root}/{name}", compression=None) as stream:
                data: bytes = stream.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable(error, f"/{name}") from None
        return data

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file, or leaves what was there: to a temporary name, flushed, then renamed.

        Raises:
            RunStoppedError: it could not be written (full disk, lost connection).
        """
        path = f"{self._root}/{name}"
        try:
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            if self.local is not None:
                _replace_local(Path(path), data)
            elif isinstance(self._files, (fs.S3FileSystem, fs.GcsFileSystem)):
                self._put(path, data)  # an object appears whole when its stream is closed; renaming would copy it
            else:
                self._put(f"{path}.tmp", data)
                self._files.move(f"{path}.tmp", path)
        except OSError as error:
            raise self._stopped(name, error) from error

    def append(self, name: str, data: bytes) -> bool:
        """Adds to the end of a file; False where the place cannot do that (object stores).

        Raises:
            RunStoppedError: it could not be written.
        """
        folder = self.local
        if folder is None:
            return False
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / name, "ab") as stream:  # buffered: it goes on until all is written, or raises
                stream.write(data)
        except OSError as error:
            raise self._stopped(name, error) from error
        return True

    def rename(self, old: str, new: str) -> None:
        """Renames a file.

        Raises:
            RunStoppedError: it cannot be renamed.
        """
        try:
            self._files.move(f"{self._root}/{old}", f"{self._root}/{new}")
        except OSError as error:
            raise self._stopped(new, error) from error

    def delete(self, name: str) -> None:
        """Deletes a file; one that is gone already is no mistake.

        Raises:
            RunStoppedError: it cannot be deleted.
        """
        try:
            self._files.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._stopped(name, error) from error

    def _put(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def _unreadable(self, error: OSError, name: str = "") -> ConfigError:
        return ConfigError(self._key, f"{self.location}{name} cannot be read: {_reason(error)}")

    def _stopped(self, name: str, error: OSError) -> RunStoppedError:
        return RunStoppedError(
            f"{self.location}/{name}: cannot be written: {_reason(error)}; what was written until now is safe: "
            f"make room, then `{self._again}`"
        )


def _replace_local(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself reaches the disk
    finally:
        os.close(folder)


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC:
        return "no space left on the device"
    return os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__


def below(location: str, name: str) -> str:
    """Path or URI of something in a folder; a URI keeps its options."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"
