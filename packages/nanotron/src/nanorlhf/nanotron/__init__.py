"""Data, tensor and pipeline parallel training of Hugging Face decoders."""

from .checkpoint import init_checkpoint, merge_checkpoint
from .config import ModelConfig, check_split
from .engine import Engine
from .errors import CheckpointError, NanotronError, NonFiniteGradient
from .loss import Loss, LossFunction, TokenOutputs, next_token_loss
from .mesh import Grid, Mesh
from .optimizer import AdamWConfig, LRSchedule
from .packing import Microbatch, balance
from .qwen3 import Qwen3

__all__ = [
    "AdamWConfig",
    "CheckpointError",
    "Engine",
    "Grid",
    "LRSchedule",
    "Loss",
    "LossFunction",
    "Mesh",
    "Microbatch",
    "ModelConfig",
    "NanotronError",
    "NonFiniteGradient",
    "Qwen3",
    "TokenOutputs",
    "balance",
    "check_split",
    "init_checkpoint",
    "merge_checkpoint",
    "next_token_loss",
]
