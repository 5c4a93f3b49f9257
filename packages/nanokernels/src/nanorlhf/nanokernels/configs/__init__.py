"""Launch parameters: one JSON table a kernel, written by :mod:`nanorlhf.nanokernels.tune`.

A table maps a key, such as ``"128/2"`` (head dimension / bytes of an element), to block sizes,
``num_warps`` and ``num_stages``. Nothing is tuned while a program runs; every entry is compiled and
checked for spills in the tests.
"""

import functools
import json
from collections.abc import Mapping
from importlib import resources

Config = Mapping[str, int]
"""Launch parameters by name."""


@functools.cache
def table(name: str) -> Mapping[str, Config]:
    """Return the table of a kernel, by key.

    >>> sorted(table("swiglu")["any"])
    ['block', 'num_warps']
    """
    text = (resources.files(__name__) / f"{name}.json").read_text()
    found: Mapping[str, Config] = json.loads(text)
    return found
