"""Arrow-style zero-copy datasets and the .nano file format."""

from .batch import Batch
from .column import Column
from .concat import concatenate_datasets
from .dataset import Dataset
from .dataset_dict import DatasetDict
from .errors import CorruptFileError, NanosetsError, SchemaError, WorkerError
from .fit import best_fit
from .gather import Ragged
from .load import load_dataset, load_from_disk
from .mix import interleave_datasets, mix_datasets
from .pack import TokenStream, WholeDocuments
from .sample import Sampler
from .types import DType, Schema
from .writer import Writer

__all__ = [
    "Batch",
    "Column",
    "CorruptFileError",
    "DType",
    "Dataset",
    "DatasetDict",
    "NanosetsError",
    "Ragged",
    "Sampler",
    "Schema",
    "SchemaError",
    "TokenStream",
    "WholeDocuments",
    "WorkerError",
    "Writer",
    "best_fit",
    "concatenate_datasets",
    "interleave_datasets",
    "load_dataset",
    "load_from_disk",
    "mix_datasets",
]
