"""The socket of an attached driver, with this test at its other end."""

import contextlib
import signal
import socket
import threading

import pytest

from nanorlhf.nanoray.connection import Connection
from nanorlhf.nanoray.driver_link import DriverLink
from nanorlhf.nanoray.refs import HoldLog
from nanorlhf.nanoray.views import Reader

WAIT_S = 30
ANSWER = ("values", [])


class Interrupted(Connection):
    """A connection during whose first sending the user presses Ctrl-C."""

    is_interrupted = False

    def flush(self):
        if not self.is_interrupted:
            self.is_interrupted = True
            signal.raise_signal(signal.SIGINT)
        return super().flush()


@contextlib.contextmanager
def linked(kind=Connection, refuse=lambda answer: None):
    """Return a link and the connection at its other end."""
    ours, theirs = socket.socketpair()
    holds = HoldLog()
    link = DriverLink(kind(ours), holds, Reader(holds), log_to_driver=False)
    link.start([], take_back=lambda message: None, refuse=refuse)
    with contextlib.closing(Connection(theirs)) as peer:
        yield link, peer
        link.close()


def test_ctrl_c_in_the_middle_of_a_message_waits_until_it_is_sent():
    before = signal.getsignal(signal.SIGINT)
    with linked(Interrupted) as (link, peer):
        with pytest.raises(KeyboardInterrupt):
            link.post(("kill", 1, True))
        assert peer.receive(WAIT_S) == [("kill", 1, True)]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_that_comes_as_time_runs_out_is_returned_or_refused(until):
    refused, num_asked = [], 3000

    def serve(peer):
        with contextlib.suppress(EOFError):
            while True:
                for verb, *fields in peer.receive():
                    if verb == "get":
                        peer.queue(("reply", fields[0], ANSWER))
                        peer.flush()

    with linked(refuse=refused.append) as (link, peer):
        thread = threading.Thread(target=serve, args=(peer,))
        thread.start()
        answers = [link.ask("get", [5], timeout_s=n % 20 * 1e-5) for n in range(num_asked)]
        returned = [answer for answer in answers if answer is not None]
        assert all(answer == ANSWER for answer in returned)
        assert until(lambda: len(returned) + len(refused) == num_asked)
    thread.join()
