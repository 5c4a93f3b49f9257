"""How much memory this machine has, for the store's default size."""

from pathlib import Path

_SHARE = 0.3  # as in Ray: the rest is for the processes themselves


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
