"""What can go wrong besides bad arguments, which raise ``ValueError``.

```
NanovllmError
|-- WeightsError        a checkpoint or a stream of weights does not fit the model
`-- RequestsRunning     the engine must be idle for this and is not
```
"""


class NanovllmError(RuntimeError):
    """The root of this package's own errors."""


class WeightsError(NanovllmError):
    """A tensor is unknown, misshapen or missing, or the last update did not finish."""


class RequestsRunning(NanovllmError):
    """Something that needs an idle engine was asked of a busy one."""

    def __init__(self, what: str, running: int) -> None:
        super().__init__(
            f"{what} needs an idle engine and {running} sequences are unfinished; "
            "let generate return, or abort them first"
        )
