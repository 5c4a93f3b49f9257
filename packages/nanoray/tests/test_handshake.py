"""Only who has the token gets a session; whatever else comes is refused at once."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanoray.errors import AuthenticationError
from nanorlhf.nanoray.handshake import MAX_BYTES, NONCE_BYTES, Answerer, Caller

TOKEN, OTHER = b"t" * 32, b"o" * 32


def caller(token=TOKEN, purpose="agent", *, nonce=None, is_tls=False):
    return Caller(token, purpose, nonce=nonce or os.urandom(NONCE_BYTES), is_tls=is_tls)


def answerer(token=TOKEN, purposes=("agent", "pull"), *, nonce=None, is_tls=False):
    return Answerer(token, purposes, nonce=nonce or os.urandom(NONCE_BYTES), is_tls=is_tls)


def talk(left, right):
    """Carry a whole handshake; return what crossed, in order."""
    hello = left.start()
    reply = right.feed(hello)
    proof = left.feed(reply)
    right.feed(proof)
    return hello, reply, proof


@pytest.mark.parametrize("purpose", ["agent", "pull"])
def test_two_that_have_the_token_share_keys_and_purpose(purpose):
    left, right = caller(purpose=purpose), answerer()
    talk(left, right)
    assert left.session.purpose == right.session.purpose == purpose
    assert left.session.send_key == right.session.receive_key
    assert left.session.receive_key == right.session.send_key
    assert left.session.send_key != left.session.receive_key


def test_every_session_has_keys_of_its_own():
    sessions = []
    for _ in range(3):
        left, right = caller(), answerer()
        talk(left, right)
        sessions.append(left.session)
    assert len({session.send_key for session in sessions}) == 3


def test_bytes_in_pieces_make_the_same_handshake_and_what_follows_is_kept():
    left, right = caller(), answerer()
    reply = b"".join(right.feed(bytes([byte])) for byte in left.start())
    proof = b"".join(left.feed(bytes([byte])) for byte in reply)
    right.feed(proof + b"first frame")
    assert right.session is not None
    assert right.rest == b"first frame"


def test_neither_side_accepts_another_token():
    left, right = caller(), answerer(OTHER)
    reply = right.feed(left.start())
    with pytest.raises(AuthenticationError, match="another token"):
        left.feed(reply)
    forged = caller(OTHER)
    right = answerer()
    reply = right.feed(forged.start())
    with pytest.raises(AuthenticationError, match="another token"):
        right.feed(b"\0" * 32)
    assert right.session is None
    assert forged.session is None


def test_the_caller_says_nothing_of_the_token_before_the_other_has_proved_itself():
    left = caller()
    fake = answerer(OTHER)
    with pytest.raises(AuthenticationError):
        left.feed(fake.feed(left.start()))
    assert left.session is None


def test_a_recorded_handshake_does_not_work_again():
    hello, _, proof = talk(caller(), answerer())
    again = answerer()
    again.feed(hello)
    with pytest.raises(AuthenticationError, match="another token"):
        again.feed(proof)
    assert again.session is None


def test_a_recorded_answer_does_not_work_again():
    _, reply, _ = talk(caller(), answerer())
    again = caller()
    again.start()
    with pytest.raises(AuthenticationError, match="another token"):
        again.feed(reply)


def test_a_proof_sent_back_to_its_maker_proves_nothing():
    left, right = caller(), answerer()
    reply = right.feed(left.start())
    with pytest.raises(AuthenticationError, match="another token"):
        right.feed(reply[-32:])


def test_a_challenge_sent_back_to_its_maker_is_refused():
    nonce = os.urandom(NONCE_BYTES)
    right = answerer(nonce=nonce)
    with pytest.raises(AuthenticationError, match="our own challenge"):
        right.feed(caller(nonce=nonce).start())


def test_an_oracle_in_the_middle_cannot_make_one_answerer_prove_for_a_caller():
    """The attacker has no token, and asks one answerer for what another wants to hear."""
    victim = answerer()
    challenge = victim.feed(caller(OTHER).start())
    nonce = challenge[10 : 10 + NONCE_BYTES]
    oracle = answerer()
    stolen = oracle.feed(caller(OTHER, nonce=nonce).start())[-32:]
    with pytest.raises(AuthenticationError, match="another token"):
        victim.feed(stolen)


def test_another_version_is_named_on_both_sides():
    left, right = caller(), answerer()
    hello = bytearray(left.start())
    struct.pack_into("<H", hello, 8, 7)
    reply = bytearray(right.feed(bytes(hello)))
    with pytest.raises(AuthenticationError, match="version 7 of the protocol"):
        right.feed(b"\0" * 32)
    struct.pack_into("<H", reply, 8, 9)
    with pytest.raises(AuthenticationError, match=r"version 9 of the protocol.*same nanoray"):
        left.feed(bytes(reply))


def test_a_version_changed_on_the_way_is_refused():
    left, right = caller(), answerer()
    hello = bytearray(left.start())
    struct.pack_into("<H", hello, 8, 2)  # a downgrade: the answerer believes it, the caller not
    with pytest.raises(AuthenticationError, match="another token"):
        left.feed(right.feed(bytes(hello)))


def test_purpose_and_transport_are_part_of_the_proof():
    left, right = caller(purpose="agent"), answerer()
    hello = bytearray(left.start())
    hello[10] = 2
    with pytest.raises(AuthenticationError, match="another token"):
        left.feed(right.feed(bytes(hello)))
    left, right = caller(is_tls=True), answerer(is_tls=False)
    with pytest.raises(AuthenticationError, match="another token"):
        left.feed(right.feed(left.start()))


def test_a_purpose_that_is_not_served_is_refused():
    with pytest.raises(AuthenticationError, match="purpose=1"):
        answerer(purposes=("pull",)).feed(caller().start())


def test_no_side_is_made_without_a_token():
    for token in (b"", b"short", b"x" * 33):
        with pytest.raises(AuthenticationError, match="32 bytes"):
            caller(token)
        with pytest.raises(AuthenticationError, match="32 bytes"):
            answerer(token)


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_random_bytes_never_make_a_session_and_are_not_piled_up(chunks):
    for side in (caller(), answerer()):
        taken = 0
        try:
            for chunk in chunks:
                side.feed(chunk)
                taken += len(chunk)
        except AuthenticationError:
            pass
        assert side.session is None
        assert taken <= MAX_BYTES


@given(st.data())
def test_a_handshake_with_one_bit_changed_is_refused(data):
    left, right = caller(), answerer()
    step = data.draw(st.sampled_from(["hello", "reply", "proof"]))

    def change(name, message):
        if name != step:
            return message
        at = data.draw(st.integers(0, 8 * len(message) - 1))
        changed = bytearray(message)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)

    with pytest.raises(AuthenticationError):
        right.feed(
            change("proof", left.feed(change("reply", right.feed(change("hello", left.start())))))
        )
    assert right.session is None
