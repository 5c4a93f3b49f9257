"""Weights by their Hugging Face names: read from a directory, written into the model in place.

A checkpoint on disk and a trainer at work are the same thing here, a stream of
``(name, tensor)`` pairs. The model's storage never moves, so captured graphs stay valid.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def read_weights(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a Hugging Face directory, on the CPU, file by file.

    Raises:
        WeightsError: The directory holds neither a safetensors file nor an index of several, or
            one of them is missing or damaged.
    """
    directory = Path(path)
    index = directory / INDEX_FILE
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (directory / SINGLE_FILE).is_file():
        files = [SINGLE_FILE]
    else:
        raise WeightsError(
            f"model={str(path)!r} holds neither {SINGLE_FILE} nor {INDEX_FILE}; save the model "
            "with save_pretrained, in safetensors format"
        )
    for file in files:
        try:
            with safe_open(directory / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safe_open is no mapping
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise WeightsError(
                f"{directory / file} is no whole safetensors file ({error}); copy or save it again"
            ) from error


@torch.no_grad()
def write_weights(
    parameters: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]], *, tied: bool
) -> None:
    """Copy a stream of weights into a model's parameters, cast to their dtype.

    Each tensor is checked before it is written; the others written by then stay written, so after
    an error the model is neither the old nor the new one.

    Args:
        parameters: What is to be written, by Hugging Face name.
        weights: Every parameter once or more, in any order, whole.
        tied: Whether the head is the embedding; then a ``lm_head.weight`` is passed over.

    Raises:
        WeightsError: A name is unknown, a shape differs, a tensor is no floating-point one, or a
            parameter is missing at the end.
    """
    missing = set(parameters)
    for name, tensor in weights:
        if tied and name == "lm_head.weight":
            continue
        target = parameters.get(name)
        if target is None:
            raise WeightsError(f"weight {name!r} is not part of this model; {_hint(parameters)}")
        if tensor.shape != target.shape or not tensor.is_floating_point():
            raise WeightsError(
                f"weight {name!r} is {tensor.dtype}{list(tensor.shape)}, the model has "
                f"{target.dtype}{list(target.shape)}; send the whole tensor, in a float dtype"
            )
        target.copy_(tensor, non_blocking=True)
        missing.discard(name)
    if any(target.is_cuda for target in parameters.values()):
        # The caller may reuse the memory it sent from as soon as this returns.
        torch.cuda.synchronize()
    if missing:
        first = sorted(missing)[:3]
        raise WeightsError(
            f"{len(missing)} of {len(parameters)} weights are missing, such as {', '.join(first)}; "
            "send every weight of the model"
        )


def _hint(parameters: Mapping[str, Tensor]) -> str:
    return f"names look like {max(parameters)!r}"
