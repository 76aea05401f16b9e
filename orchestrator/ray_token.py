"""The token that a Ray cluster asks for: who holds it may run any code there, so its file is nobody else's to read."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from pathlib import Path

# Ray has no public name for this switch; the dependency on Ray is pinned to one minor version for such imports.
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError

from search_spaces.errors import ConfigError

__all__ = ["keep_token_private", "token_file", "use_token"]

_TOKEN_BYTES = 32
"""As many random bytes as Ray's own tokens have."""


def token_file() -> Path:
    """Where Ray looks for a token when neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH is set."""
    return Path.home() / ".ray" / "auth_token"


def keep_token_private() -> None:
    """Makes the token file before Ray does (which leaves it readable to everybody), or takes others' access away.

    Does nothing where the environment holds the token or names another file, or where token authentication was
    switched off with RAY_AUTH_MODE.

    Raises:
        ConfigError: the file can be neither written nor changed.
    """
    elsewhere = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    file = token_file()
    try:
        if file.exists() and file.stat().st_size:
            file.chmod(0o600)
        else:
            _write_token(file)
    except OSError as error:
        raise ConfigError(
            str(file),
            f"Ray's token cannot be kept there ({error.strerror}); name another file in RAY_AUTH_TOKEN_PATH",
        ) from error


def _write_token(file: Path) -> None:
    """Writes a new token under a temporary name first: nobody sees half of it, and of two starts at once one wins."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix="auth_token.")  # mkstemp's mode is 0600
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(_TOKEN_BYTES))
    if file.exists() and not file.stat().st_size:
        file.unlink()
    with contextlib.suppress(FileExistsError):
        os.link(temporary, file)
    os.unlink(temporary)


def use_token() -> bool:
    """Presents this user's token, where there is one, to the cluster that is about to be joined.

    Ray does so by itself for the addresses that it finds, not for those that it is given. A cluster without
    authentication ignores a token.

    Returns:
        Whether a token will be presented.

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names a file that is unreadable or empty.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # or Ray explains on standard error how to opt out
    try:
        return maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except AuthenticationError as error:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
        raise ConfigError("RAY_AUTH_TOKEN_PATH", f"cannot read a token from {path!r}; name a readable file") from error
