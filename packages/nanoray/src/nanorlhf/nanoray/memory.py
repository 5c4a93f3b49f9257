"""How large a machine's store may be: what was asked for, or a part of its memory."""

from pathlib import Path

_SHARE = 0.3  # as in Ray: the rest is for the processes themselves
_MIN_STORE_BYTES = 1 << 20


def check_store_bytes(size: int | None) -> None:
    """Raise ValueError unless ``size`` bytes are enough for a store; None is the default."""
    if size is not None and (not isinstance(size, int) or size < _MIN_STORE_BYTES):
        raise ValueError(
            f"object_store_memory={size!r} must be an int of {_MIN_STORE_BYTES} or more, in bytes"
        )


def default_store_bytes(root: Path = Path("/")) -> int:
    """Return 30 % of the memory that this process may use.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [_total_bytes(root), *_cgroup_limits(root)]
    return int(_SHARE * min(limits))


def _total_bytes(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the kernel tells MemTotal (proc(5))")


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits on this process's control group and those above it (cgroups(7))."""
    limits = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        place = top / path.lstrip("/")
        # A container sees its own group at the top, whatever path the kernel tells it.
        for folder in {place, *place.parents, top}:
            if folder.is_relative_to(top) and (folder / name).is_file():
                text = (folder / name).read_text().strip()
                limits += [int(text)] if text.isdigit() else []
    return limits
