"""What must hold whenever a process is killed: whole files, and one owner of a folder."""

import fcntl
import os
from pathlib import Path
from typing import IO


def acquire(folder: Path) -> IO[str]:
    """Return the open lock file of ``folder``, held until it is closed or this process ends.

    A POSIX record lock belongs to one process: unlike flock's, a forked child that outlives its
    parent for a moment does not keep it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"run.dir={str(folder)!r} is in use by process {owner}; wait for it or name another run"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``: a reader finds the old text or the new, never a part."""
    tmp = path.with_name(f"{path.name}.tmp")
    with tmp.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)
