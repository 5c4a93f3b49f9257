"""Where a machine of a cluster listens."""

from typing import NamedTuple


class Address(NamedTuple):
    """Where a machine listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return ``host:port``, with or without ``nano://`` before it.

    Raises:
        ValueError: The text is no address.

    >>> parse_address("nano://10.0.0.1:6380"), str(parse_address("[::1]:6380"))
    (Address(host='10.0.0.1', port=6380), '[::1]:6380')
    """
    host, colon, port = text.removeprefix("nano://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"address={text!r} is not host:port; write nano://10.0.0.1:6380")
    return Address(host, int(port))
