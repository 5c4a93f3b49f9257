"""Weights by Hugging Face name: read slices of safetensors files, or make fresh ones.

Fresh tensors are drawn whole from a seed of their own name and then sliced, so a model starts from
the same weights in every layout.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .spec import ParamSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorSlice(Protocol):
    """A tensor in a file, of which any slice can be read."""

    def get_shape(self) -> list[int]:
        """Return the full shape."""

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        """Read a slice."""


class TensorFile(Protocol):
    """What this package uses of ``safetensors.safe_open``."""

    def keys(self) -> list[str]:
        """Return the names of the tensors."""

    def get_tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""

    def get_slice(self, name: str) -> TensorSlice:
        """Return a tensor to read slices of."""


def open_whole(path: Path) -> safe_open:
    """Return the opened safetensors file.

    Raises:
        CheckpointError: It is damaged or cut short.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); copy or save it again"
        ) from error


class TensorFiles:
    """Safetensors files, opened when first used; a context manager that closes them."""

    def __init__(self) -> None:
        self._open: dict[Path, TensorFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def file(self, path: Path) -> TensorFile:
        """Return the open file."""
        if path not in self._open:
            handle = self._stack.enter_context(open_whole(path))
            self._open[path] = cast(TensorFile, handle)
        return self._open[path]


class HFWeights(TensorFiles):
    """The tensors of a model directory by name; a context manager.

    Raises:
        CheckpointError: The directory has neither ``model.safetensors`` nor its index, or a file
            of the index is missing.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._files = _weight_files(self.path)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, spec: ParamSpec, *, tp: int = 1, tp_rank: int = 0) -> Tensor:
        """Return one tp rank's slice of a tensor; only those bytes are read.

        Raises:
            CheckpointError: The tensor's shape is not the specification's.
        """
        found = self.file(self._files[spec.name]).get_slice(spec.name)
        shape = tuple(found.get_shape())
        if shape != spec.shape:
            raise CheckpointError(
                f"{self.path}: {spec.name} has shape {shape}, config.json makes it {spec.shape}"
            )
        return found[spec.local_slices(tp, tp_rank)]

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor."""
        return self.file(self._files[name]).get_tensor(name)


def _weight_files(path: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    index, single = path / INDEX, path / SINGLE
    if index.is_file():
        names = json.loads(index.read_text())["weight_map"]
        files = {name: path / file for name, file in names.items()}
        missing = sorted({file.name for file in files.values() if not file.is_file()})
        if missing:
            raise CheckpointError(f"{path}: {INDEX} names {missing[0]}, which is not there")
        return files
    if single.is_file():
        with open_whole(single) as handle:
            return dict.fromkeys(handle.keys(), single)
    raise CheckpointError(
        f"{path}: no weights there; looked for {SINGLE} and {INDEX} (pytorch_model.bin is not read)"
    )


def fresh(spec: ParamSpec, *, seed: int, std: float) -> Tensor:
    """Return a newly initialised full tensor in float32, the same for a (seed, name) everywhere."""
    if spec.init == "ones":
        return torch.ones(spec.shape)
    if spec.init == "zeros":
        return torch.zeros(spec.shape)
    digest = hashlib.blake2b(f"{seed}/{spec.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(spec.shape, generator=generator).mul_(std)


def write_weights(
    tensors: Iterable[tuple[str, Tensor]], path: Path, *, max_bytes: int = 5 << 30
) -> None:
    """Write a stream of tensors as one safetensors file, or several and an index.

    Memory holds at most about ``max_bytes`` of them at a time.
    """
    files: list[Path] = []
    names: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, max_bytes):
        files.append(path / f"part-{len(files):05d}.safetensors")
        names.append(list(shard))
        save_file(shard, files[-1], metadata={"format": "pt"})
        total += sum(t.numel() * t.element_size() for t in shard.values())
    name_weight_files(path, files, names, total_bytes=total)


def _shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Yield groups of tensors of about ``max_bytes``."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= max_bytes:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def name_weight_files(
    path: Path, files: list[Path], names: list[list[str]], *, total_bytes: int
) -> None:
    """Give written parts the names Hugging Face expects, and write the index if there are several.

    Args:
        path: The model directory.
        files: Written parts in it.
        names: Tensors of each part.
        total_bytes: Size of all tensors.
    """
    # An index left by earlier weights would be read before them, and the other way round.
    for stale in (path / INDEX, path / SINGLE):
        stale.unlink(missing_ok=True)
    if len(files) == 1:
        files[0].rename(path / SINGLE)
        return
    weight_map = {}
    for i, (file, members) in enumerate(zip(files, names, strict=True), start=1):
        final = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        file.rename(path / final)
        weight_map.update(dict.fromkeys(members, final))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in config.json.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
