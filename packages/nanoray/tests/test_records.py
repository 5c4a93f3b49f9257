"""Records come out as they went in, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanoray.errors import AuthenticationError
from nanorlhf.nanoray.records import MAX_BODY, Opener, Sealer

KEY, OTHER = b"k" * 32, b"o" * 32


def chunked(data, cuts):
    """Cut ``data`` into pieces of the sizes ``cuts``, over and over."""
    pieces, start, turn = [], 0, 0
    while start < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[start : start + size])
        start, turn = start + size, turn + 1
    return pieces


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_what_is_sealed_comes_out_in_whatever_pieces_it_travels(bodies, cuts):
    sealer, opener = Sealer(KEY), Opener(KEY)
    stream = b"".join(sealer.seal(body) for body in bodies)
    assert b"".join(opener.feed(piece) for piece in chunked(stream, cuts)) == b"".join(bodies)


@pytest.mark.parametrize("size", [0, 1, MAX_BODY - 1, MAX_BODY, MAX_BODY + 1, 5 * MAX_BODY + 3])
def test_bodies_around_the_limit_of_a_record(size):
    body = bytes(range(256)) * (size // 256 + 1)
    assert Opener(KEY).feed(Sealer(KEY).seal(body[:size])) == body[:size]


@given(st.data())
def test_one_changed_bit_is_found(data):
    stream = bytearray(Sealer(KEY).seal(b"a message of some length"))
    at = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[at // 8] ^= 1 << at % 8
    opener = Opener(KEY)
    try:
        assert opener.feed(bytes(stream)) == b""  # a length that grew: it waits for more
    except AuthenticationError:
        return
    with pytest.raises(AuthenticationError):
        opener.feed(bytes(MAX_BODY))


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (0, 1, 0)])
def test_repeated_lost_and_swapped_records_are_found(order):
    sealer = Sealer(KEY)
    records = [sealer.seal(bytes([number])) for number in range(3)]
    opener = Opener(KEY)
    for number in order[:-1]:
        opener.feed(records[number])
    with pytest.raises(AuthenticationError, match="changed on its way"):
        opener.feed(records[order[-1]])


def test_a_record_of_the_other_direction_is_refused():
    with pytest.raises(AuthenticationError):
        Opener(OTHER).feed(Sealer(KEY).seal(b"x"))


@pytest.mark.parametrize("length", [0, MAX_BODY + 1, 2**32 - 1])
def test_a_length_out_of_range_is_refused_before_anything_is_read(length):
    with pytest.raises(AuthenticationError, match=f"record of {length} bytes"):
        Opener(KEY).feed(length.to_bytes(4, "little") + bytes(16))


@given(st.lists(st.binary(max_size=400), max_size=40))
def test_random_bytes_never_come_out(chunks):
    opener = Opener(KEY)
    try:
        for chunk in chunks:
            assert opener.feed(chunk) == b""
    except AuthenticationError:
        pass
