"""Paged-attention inference engine."""

from .errors import NanovllmError, RequestsRunning, WeightsError
from .llm import LLM
from .outputs import CompletionOutput, RequestOutput
from .sampling import SamplingParams
from .step import Stats

__all__ = [
    "LLM",
    "CompletionOutput",
    "NanovllmError",
    "RequestOutput",
    "RequestsRunning",
    "SamplingParams",
    "Stats",
    "WeightsError",
]
