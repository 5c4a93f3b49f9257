"""The cluster's token: 32 secret bytes in a file that only its owner can read.

Whoever has the token can run code on every machine of the cluster, so the file is held to the
rule of an SSH key: a copy that others can read is refused, not used.
"""

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from .errors import AuthenticationError

TOKEN_BYTES = 32
_MAX_FILE = 4096


def default_token_path() -> Path:
    """Return ``~/.nanoray/token``."""
    return Path.home() / ".nanoray" / "token"


def obtain_token(path: Path | None = None) -> bytes:
    """Return the token in ``path``, which is made on first use.

    Args:
        path: The file; None is ``default_token_path()``.

    Raises:
        AuthenticationError: The file is not private, or is no token.
    """
    where = default_token_path() if path is None else path
    if not where.exists():
        _create(where)
    return load_token(where)


def load_token(path: Path) -> bytes:
    """Return the token in ``path``.

    Raises:
        AuthenticationError: There is no such file, it is not private, or it is no token.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AuthenticationError(
            f"token file {path}: {error.strerror}; copy it from the head's machine "
            f"(nanoray start --head makes it), or name another with --token-path"
        ) from error
    try:
        _check_private(path, os.fstat(fd))
        text = os.read(fd, _MAX_FILE)
    finally:
        os.close(fd)
    with contextlib.suppress(ValueError):
        token = bytes.fromhex(text.decode("ascii"))
        if len(token) == TOKEN_BYTES:
            return token
    raise AuthenticationError(
        f"token file {path} does not hold {2 * TOKEN_BYTES} hex digits; copy it anew from the "
        f"head's machine, or delete it on all machines to have a new one made"
    )


def _check_private(path: Path, status: os.stat_result) -> None:
    """Refuse a file that anyone else could read or could have written."""
    if not stat.S_ISREG(status.st_mode):
        raise AuthenticationError(f"token file {path} is not a regular file; name the file itself")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise AuthenticationError(
            f"token file {path} has mode {mode:04o}, so others can use it; run: chmod 600 {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise AuthenticationError(
            f"token file {path} belongs to uid {status.st_uid}, not to uid {os.geteuid()}; "
            f"make a copy of your own"
        )


def _create(path: Path) -> None:
    """Write a new token; of several processes that try at once, the first one's stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".token-")  # mode 0600
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(TOKEN_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)  # all or nothing, and never over a token that is there
    finally:
        os.unlink(name)
