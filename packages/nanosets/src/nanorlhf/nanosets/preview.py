"""The first rows of a dataset as a few lines of text."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CorruptFileError
from .formats import STORED
from .gather import Ragged

if TYPE_CHECKING:
    from .dataset import Dataset

PREVIEW_ROWS = 5
MAX_CELL = 32
"""Characters of a cell at most."""
MAX_LINE = 100
"""Characters of a line at most; the columns that do not fit are counted."""
MAX_ELEMENTS = 6


def preview(ds: "Dataset", rows: int = PREVIEW_ROWS) -> list[str]:
    """Return the first rows as the lines of a table, shortened to fit a terminal.

    A damaged file is said to be so in place of its rows: showing a dataset never raises.
    """
    rows = min(rows, len(ds))
    if not rows:
        return []
    try:
        found = STORED.batch(ds.columns, np.arange(rows))
    except CorruptFileError as error:
        return [f"(its rows cannot be shown: {error})"]
    columns = [[cell(name), *map(cell, values)] for name, values in found.items()]
    widths = [max(map(len, column)) for column in columns]
    shown = _fitting(widths)
    table = [
        "  ".join(f"{text:<{width}}" for text, width in zip(row[:shown], widths, strict=False))
        for row in zip(*columns, strict=True)
    ]
    rest = f"  ... {len(columns) - shown} more columns" if shown < len(columns) else ""
    table[0] += rest
    more = [f"... {len(ds) - rows} more rows"] if rows < len(ds) else []
    return [line.rstrip() for line in table] + more


def cell(value: Any) -> str:  # noqa: ANN401 - a value of any column type
    """Return a value on one short line.

    >>> cell([1, 2]), cell(list(range(20))), cell(2 * "ab" * 20)
    ('[1, 2]', '[0, 1, 2, 3, 4, 5, ... 20]', 'ababababababababababababababa...')
    """
    if isinstance(value, Ragged):
        value = value.rows()
    if isinstance(value, np.ndarray | list):
        shown = [cell(item) for item in value[:MAX_ELEMENTS]]
        rest = [f"... {len(value)}"] if len(value) > MAX_ELEMENTS else []
        text = f"[{', '.join([*shown, *rest])}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{name}: {cell(inner)}' for name, inner in value.items())}}}"
    elif isinstance(value, str):
        text = repr(value[: 2 * MAX_CELL])[1:-1]
    else:
        text = str(value)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."


def _fitting(widths: list[int]) -> int:
    """Return how many columns fit on a line, at least one."""
    totals = np.cumsum(np.array(widths) + 2) - 2
    return max(1, int(np.searchsorted(totals, MAX_LINE, side="right")))
