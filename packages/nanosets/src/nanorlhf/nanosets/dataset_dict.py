"""A dictionary of datasets, such as train and test, and the verbs on all of them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CorruptFileError
from .source import IO

if TYPE_CHECKING:
    from .dataset import Dataset

SPLITS_FILE = "dataset_dict.json"
"""Names the splits of a saved directory, in order; written last."""
SPLIT_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class DatasetDict(dict[str, "Dataset"]):
    """Datasets by the name of their split; a verb makes a new dictionary of its results.

    The verbs take the arguments that they take on a ``Dataset``.

    >>> from nanorlhf.nanosets import Dataset
    >>> splits = Dataset.from_dict({"a": range(8)}).train_test_split(2, shuffle=False)
    >>> splits.map(lambda row: {"b": row["a"] * 2})["test"].to_list()
    [{'a': 6, 'b': 12}, {'a': 7, 'b': 14}]
    """

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {name: len(ds) for name, ds in self.items()}

    @property
    def num_columns(self) -> dict[str, int]:
        """Columns of each split."""
        return {name: ds.num_columns for name, ds in self.items()}

    @property
    def shape(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each split."""
        return {name: ds.shape for name, ds in self.items()}

    @property
    def column_names(self) -> dict[str, list[str]]:
        """The columns' names of each split."""
        return {name: ds.column_names for name, ds in self.items()}

    def __repr__(self) -> str:
        inner = "\n".join(f"{name}: {ds!r}" for name, ds in self.items())
        return "DatasetDict({\n" + "".join(f"    {line}\n" for line in inner.splitlines()) + "})"

    def _each(self, verb: str, *args: Any, **options: Any) -> "DatasetDict":
        return DatasetDict({n: getattr(ds, verb)(*args, **options) for n, ds in self.items()})

    def map(self, *args: Any, output: str | Path | None = None, **options: Any) -> "DatasetDict":
        """Map every split; ``output`` is a directory, of one file a split."""
        if output is None:
            return self._each("map", *args, **options)
        paths = {name: _file(output, name) for name in self}
        found = {n: ds.map(*args, output=paths[n], **options) for n, ds in self.items()}
        _write_names(output, list(self))
        return DatasetDict(found)

    def filter(self, *args: Any, **options: Any) -> "DatasetDict":
        """Filter every split."""
        return self._each("filter", *args, **options)

    def sort(self, *args: Any, **options: Any) -> "DatasetDict":
        """Sort every split."""
        return self._each("sort", *args, **options)

    def shuffle(
        self,
        seeds: int | Mapping[str, int | None] | None = None,
        seed: int | None = None,
    ) -> "DatasetDict":
        """Shuffle every split.

        Args:
            seeds: One seed for all splits, or one for each.
            seed: One seed for all splits.

        Raises:
            ValueError: Both are given, or ``seeds`` misses a split.
        """
        if seeds is not None and seed is not None:
            raise ValueError(f"{seeds=} and {seed=} are both given; leave one out")
        if not isinstance(seeds, Mapping):
            seeds = dict.fromkeys(self, seed if seeds is None else seeds)
        if set(seeds) != set(self):
            raise ValueError(f"seeds are given for {list(seeds)}, the splits are {list(self)}")
        return DatasetDict({name: ds.shuffle(seeds[name]) for name, ds in self.items()})

    def select_columns(self, column_names: str | Sequence[str]) -> "DatasetDict":
        """Select these columns of every split."""
        return self._each("select_columns", column_names)

    def remove_columns(self, column_names: str | Sequence[str]) -> "DatasetDict":
        """Remove these columns of every split."""
        return self._each("remove_columns", column_names)

    def rename_column(self, original_column_name: str, new_column_name: str) -> "DatasetDict":
        """Rename a column of every split."""
        return self._each("rename_column", original_column_name, new_column_name)

    def rename_columns(self, column_mapping: Mapping[str, str]) -> "DatasetDict":
        """Rename columns of every split."""
        return self._each("rename_columns", column_mapping)

    def cast(self, features: Any) -> "DatasetDict":  # noqa: ANN401 - as Dataset.cast
        """Cast every split."""
        return self._each("cast", features)

    def cast_column(self, column: str, feature: Any) -> "DatasetDict":  # noqa: ANN401
        """Cast a column of every split."""
        return self._each("cast_column", column, feature)

    def flatten(self, max_depth: int = 16) -> "DatasetDict":
        """Flatten every split."""
        return self._each("flatten", max_depth)

    def unique(self, column: str) -> dict[str, list[Any]]:
        """Return the distinct values of a column of each split."""
        return {name: ds.unique(column) for name, ds in self.items()}

    def with_format(self, *args: Any, **options: Any) -> "DatasetDict":
        """Format every split."""
        return self._each("with_format", *args, **options)

    def with_transform(self, *args: Any, **options: Any) -> "DatasetDict":
        """Transform every split as it is read."""
        return self._each("with_transform", *args, **options)

    def save_to_disk(self, dataset_dict_path: str | Path, **options: Any) -> None:
        """Write every split to ``<name>.nano`` in a directory.

        Args:
            dataset_dict_path: The directory, made if need be.
            **options: As ``Dataset.save_to_disk``.

        Raises:
            OSError: A file cannot be written.
            ValueError: A split has a name that is no file name.
        """
        paths = {name: _file(dataset_dict_path, name) for name in self}
        for name, ds in self.items():
            ds.save_to_disk(paths[name], **options)
        _write_names(dataset_dict_path, list(self))

    @classmethod
    def load_from_disk(
        cls, dataset_dict_path: str | Path, *, verify: bool = False, io: IO = "mmap"
    ) -> "DatasetDict":
        """Return what ``save_to_disk`` wrote, mapped into memory.

        Raises:
            CorruptFileError: A file is damaged.
            FileNotFoundError: The directory holds no saved splits.
        """
        from .dataset import Dataset

        listing = Path(dataset_dict_path) / SPLITS_FILE
        try:
            names = json.loads(listing.read_bytes())["splits"]
            paths = {name: _file(dataset_dict_path, name) for name in names}
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(listing, f"names no splits: {error}") from None
        return cls({n: Dataset.from_file(p, verify=verify, io=io) for n, p in paths.items()})


def _file(folder: str | Path, name: str) -> Path:
    if not isinstance(name, str) or not SPLIT_NAME.fullmatch(name):
        raise ValueError(f"split {name!r} is no file name; use letters, digits, _, - and .")
    return Path(folder) / f"{name}.nano"


def _write_names(folder: str | Path, names: list[str]) -> None:
    path = Path(folder) / SPLITS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".json.tmp.{os.getpid()}")
    fresh.write_text(json.dumps({"splits": names}) + "\n", encoding="utf-8")
    os.replace(fresh, path)
