"""Everything this package raises on its own account.

::

    NanosetsError
    |-- CorruptFileError     a .nano file whose bytes break a rule of the format
    |-- SchemaError          (also a ValueError) values that fit no type, or not the asked one
    `-- WorkerError          a process of map or filter raised, or died
"""

from pathlib import Path


class NanosetsError(Exception):
    """Base of the errors of this package."""


class CorruptFileError(NanosetsError):
    """A ``.nano`` file is cut short, damaged, or written by a newer format.

    Attributes:
        path: The file.
        where: The part of the file and the rule that it breaks.
    """

    def __init__(self, path: str | Path, where: str) -> None:
        super().__init__(str(path), where)
        self.path = str(path)
        self.where = where

    def __str__(self) -> str:
        return f"{self.path}: {self.where}; write the file again from its source"


class SchemaError(NanosetsError, ValueError):
    """A value has no column type, or not the type its column has.

    Attributes:
        field: Dotted path of the value, ``[]`` for an element of a list: ``messages[].role``.
        problem: What is wrong with it and how to mend it.
        row: Number of the row, when it is known.
    """

    def __init__(self, field: str, problem: str, *, row: int | None = None) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem
        self.row = row

    def __str__(self) -> str:
        at = "" if self.row is None else f"row {self.row}, "
        return f"{at}field {self.field!r}: {self.problem}"


class WorkerError(NanosetsError):
    """A process that ``map`` or ``filter`` started raised, or died; the others are ended.

    Attributes:
        rows: First of the rows it was at, and the one after the last.
        problem: What it raised, with its traceback, or how it died.
    """

    def __init__(self, rows: tuple[int, int], problem: str) -> None:
        super().__init__(tuple(rows), problem)
        self.rows = rows
        self.problem = problem

    def __str__(self) -> str:
        return f"rows {self.rows[0]} .. {self.rows[1]}: {self.problem}"
