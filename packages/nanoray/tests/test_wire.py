import pytest

from nanorlhf.nanoray.wire import Unpacker, pack

MESSAGES = [
    ("get", 1, [2, 3]),
    ("put", 7, (b"x" * 1000, (), (), None), ()),
    ("exit",),
    ("setup", {"env": {"A": "b"}, "n": None, "f": 0.5, "yes": True}),
]


@pytest.mark.parametrize("size", [1, 3, 8, 9, 100, 10_000])
def test_messages_survive_any_chunking(size):
    stream = b"".join(pack(message) for message in MESSAGES)
    unpacker = Unpacker()
    received = []
    for start in range(0, len(stream), size):
        received += unpacker.feed(stream[start : start + size])
    assert received == MESSAGES


def test_a_message_of_objects_is_refused():
    with pytest.raises(ValueError, match="unmarshallable"):
        pack(("put", object()))


def test_a_length_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="broken stream"):
        Unpacker().feed(b"\xff" * 8)
