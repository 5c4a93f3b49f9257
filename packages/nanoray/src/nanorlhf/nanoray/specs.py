"""What calls have in common, as bytes: encoded once, decoded once. No I/O.

A call in a burst is like the one before it, but for a few numbers. So the rest is a ``bytes``, of
which either codec makes one copy, and which is looked up here by its hash.
"""

import marshal
from functools import lru_cache

from .messages import Brief, Spec

_KEPT = 1024
"""Functions and methods that are known at a time; one more is decoded again."""


def encoded(spec: Spec) -> bytes:
    """Return a spec as it travels.

    >>> spec_of(encoded(Spec("task", 0, 7, "", "f()"))).code
    7
    """
    return marshal.dumps(tuple(spec))


@lru_cache(_KEPT)
def spec_of(data: bytes) -> Spec:
    """Return the spec, with the brief for whoever runs its calls."""
    spec = Spec(*marshal.loads(data))
    common = (spec.kind, spec.actor, spec.code, spec.method, spec.name)
    return spec._replace(brief=marshal.dumps((*common, spec.retry_on, spec.stream)))


@lru_cache(_KEPT)
def brief_of(data: bytes) -> Brief:
    """Return the brief.

    >>> brief_of(spec_of(encoded(Spec("task", 0, 7, "", "f()"))).brief).name
    'f()'
    """
    return Brief(*marshal.loads(data))
