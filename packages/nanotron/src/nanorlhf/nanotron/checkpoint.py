"""Checkpoints: a Hugging Face directory that any layout writes and any layout reads.

::

    step_000100/
      config.json
      model-00001-of-00002.safetensors ...   full tensors under Hugging Face names
      model.safetensors.index.json           (one file needs none)
      trainer_state.json                     step count and the trainer's own state
      optimizer/rank_00000.safetensors ...   each rank's shard, as it lies in memory
      optimizer/rank_00000.json ...          which (tensor, slice, start, stop) that is

Weights are gathered over tp tensor by tensor to the rank that writes them; the data parallel
replicas share the writing. Everything is written to ``<path>.tmp`` and renamed at the end.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .collectives import gather_dim
from .companions import read_companions, write_companions
from .config import ModelConfig
from .errors import CheckpointError
from .mesh import Mesh
from .optimizer_state import read_optimizer, write_optimizer
from .qwen3 import Qwen3
from .spec import Head, param_table
from .weights import HFWeights, dtype_name, fresh, name_weight_files, write_weights
from .zero import ShardedOptimizer

T = TypeVar("T")

_ARCHITECTURES: dict[Head, str] = {
    "lm": "Qwen3ForCausalLM",
    "value": "Qwen3ForTokenClassification",
}


class _Part(NamedTuple):
    """A file of weights that one rank wrote."""

    file: str
    names: list[str]
    size_bytes: int


def save(
    path: str | Path,
    model: Qwen3,
    optimizer: ShardedOptimizer | None,
    *,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically; every rank calls it with the same path.

    Raises:
        CheckpointError: Some rank could not write; the directory does not appear.
    """
    path, mesh = Path(path), model.mesh
    scratch = path.with_name(path.name + ".tmp")
    lead = mesh.rank == 0
    _together(mesh, lambda: _clear(scratch) if lead else None)
    tensors = _gather_share(model)
    parts = _together(mesh, lambda: _write_part(scratch, mesh, tensors))
    if optimizer is not None:
        _together(mesh, lambda: write_optimizer(scratch / "optimizer", optimizer))

    def finish() -> None:
        written = sorted(part for part in parts if part is not None)
        _finish(scratch, model, written, optimizer, state)
        _publish(scratch, path)

    _together(mesh, lambda: finish() if lead else None)


def _clear(scratch: Path) -> None:
    """Make the directory that everything is written to, empty."""
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "optimizer").mkdir(parents=True)


def _gather_share(model: Qwen3) -> dict[str, Tensor]:
    """Return the full tensors, on the CPU, that this rank is to write; collective over tp."""
    mesh, flat = model.mesh, model.flat
    tensors: dict[str, Tensor] = {}
    for i, slot in enumerate(flat.owned()):
        if i % mesh.dp != mesh.dp_rank:
            continue
        tensor = flat.view(flat.data, slot.spec.name)
        if slot.spec.shard_dim is not None:
            tensor = gather_dim(tensor, slot.spec.shard_dim, mesh.tp_group)
        if mesh.tp_rank == 0:
            tensors[slot.spec.name] = tensor.detach().cpu().contiguous()
    return tensors


def _write_part(scratch: Path, mesh: Mesh, tensors: dict[str, Tensor]) -> _Part | None:
    """Write this rank's share of the weights; None when it has none."""
    if not tensors:
        return None
    file = f"part-{mesh.pp_rank:03d}-{mesh.dp_rank:04d}.safetensors"
    save_file(tensors, scratch / file, metadata={"format": "pt"})
    return _Part(file, list(tensors), sum(t.nbytes for t in tensors.values()))


def _together(mesh: Mesh, work: Callable[[], T]) -> list[T]:
    """Run ``work`` on every rank and return all results; if one cannot write, all raise."""
    result: T | None = None
    problem = None
    try:
        result = work()
    except (OSError, SafetensorError) as error:
        problem = f"rank {mesh.rank}: {error}"
    outcomes: list[Any] = [(result, problem)]
    if mesh.world_size > 1:
        outcomes = [None] * mesh.world_size
        dist.all_gather_object(outcomes, (result, problem))
    problems = [problem for _, problem in outcomes if problem]
    if problems:
        raise CheckpointError(f"the checkpoint was not written: {'; '.join(problems)}")
    return [result for result, _ in outcomes]


def _finish(
    scratch: Path,
    model: Qwen3,
    parts: list[_Part],
    optimizer: ShardedOptimizer | None,
    state: dict[str, Any] | None,
) -> None:
    """Name the weight files and write what only one rank writes."""
    name_weight_files(
        scratch,
        [scratch / part.file for part in parts],
        [part.names for part in parts],
        total_bytes=sum(part.size_bytes for part in parts),
    )
    _write_config(scratch, model.config, head=model.head_kind, dtype=model.dtype)
    steps = 0 if optimizer is None else optimizer.adam.steps
    document = {"optimizer_steps": steps, "state": state or {}}
    (scratch / "trainer_state.json").write_text(json.dumps(document, indent=1) + "\n")
    if optimizer is None:
        (scratch / "optimizer").rmdir()
    write_companions(model.companions, scratch)


def _publish(scratch: Path, path: Path) -> None:
    """Rename the finished directory, replacing an older one."""
    if path.exists():
        old = path.with_name(path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        scratch.rename(path)
        shutil.rmtree(old, ignore_errors=True)  # the new one stands: litter is no failure
    else:
        scratch.rename(path)


def _write_config(path: Path, config: ModelConfig, *, head: Head, dtype: torch.dtype) -> None:
    """Write config.json for a head and dtype."""
    values = config.to_hf_dict()
    values.pop("torch_dtype", None)
    values["architectures"] = [_ARCHITECTURES[head]]
    values["dtype"] = dtype_name(dtype)
    if head == "value":
        values.pop("num_labels", None)
        values["id2label"] = {"0": "VALUE"}
        values["label2id"] = {"VALUE": 0}
    (path / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def load(path: str | Path, model: Qwen3, optimizer: ShardedOptimizer | None) -> dict[str, Any]:
    """Restore a checkpoint written in any layout; every rank calls it. Returns its state.

    Raises:
        CheckpointError: Something is missing, or shapes differ.
    """
    path = Path(path)
    document = path / "trainer_state.json"
    if not document.is_file():
        raise CheckpointError(
            f"{path}: no trainer_state.json, so no training can resume from it; use "
            f"Qwen3.from_pretrained for its weights alone"
        )
    values = json.loads(document.read_text())
    model.load_weights(path)
    if optimizer is not None:
        optimizer.refresh_master()
        read_optimizer(path / "optimizer", optimizer)
        optimizer.adam.steps = values["optimizer_steps"]
    model.mesh.barrier()
    state: dict[str, Any] = values["state"]
    return state


def init_checkpoint(
    config: dict[str, Any],
    path: str | Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a randomly initialised Hugging Face model directory.

    Each tensor has a seed of its own name, so ``Qwen3(config, mesh, seed=seed)`` starts from the
    same weights in every layout.

    Args:
        config: Contents of config.json.
        path: Directory to write into; created.
        seed: Of the weights.
        dtype: Of the weights.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    shape = ModelConfig.from_dict(config)
    std = shape.initializer_range
    table = param_table(shape)
    write_weights(((s.name, fresh(s, seed=seed, std=std).to(dtype)) for s in table), path)
    _write_config(path, shape, head="lm", dtype=dtype)


def merge_checkpoint(
    src: str | Path, dst: str | Path, *, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write the model of a checkpoint as one self-contained directory, on the CPU.

    Weights are cast to ``dtype`` and put into as few files as fit 5 GiB each; config, tokenizer and
    generation config come along, optimizer and trainer state stay behind.

    Raises:
        CheckpointError: ``src`` is not a model directory.
        ValueError: ``dst`` is ``src``.
    """
    src, dst = Path(src), Path(dst)
    if src.resolve() == dst.resolve():
        raise ValueError(f"dst={dst} is src; merging in place would destroy the checkpoint")
    config = ModelConfig.from_pretrained(src)
    with HFWeights(src) as files:
        scratch = dst.with_name(dst.name + ".tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_weights(((name, files.tensor(name).to(dtype)) for name in files.names), scratch)
        head: Head = "value" if "score.weight" in files else "lm"
    _write_config(scratch, config, head=head, dtype=dtype)
    write_companions(read_companions(src), scratch)
    _publish(scratch, dst)
