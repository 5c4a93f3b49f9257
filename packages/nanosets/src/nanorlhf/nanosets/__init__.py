"""Arrow-style zero-copy datasets and the .nano file format."""

from .column import Column
from .dataset import Dataset
from .errors import CorruptFileError, NanosetsError, SchemaError
from .gather import Ragged
from .load import concatenate_datasets, load_dataset, load_from_disk
from .types import DType, Schema
from .writer import Writer

__all__ = [
    "Column",
    "CorruptFileError",
    "DType",
    "Dataset",
    "NanosetsError",
    "Ragged",
    "Schema",
    "SchemaError",
    "Writer",
    "concatenate_datasets",
    "load_dataset",
    "load_from_disk",
]
