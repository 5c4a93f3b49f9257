"""The socket of an attached driver, with this test at its other end."""

import contextlib
import signal
import socket
import threading

import pytest

from nanorlhf.nanoray.connection import Connection
from nanorlhf.nanoray.driver_link import DriverLink
from nanorlhf.nanoray.errors import EngineError
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


class InterruptedReading(Connection):
    """A connection that the user's Ctrl-C meets with a message read and not yet taken."""

    is_armed = False

    def receive(self, timeout_s=None):
        messages = super().receive(timeout_s)
        if messages and self.is_armed:
            self.is_armed = False
            signal.raise_signal(signal.SIGINT)
        return messages


@contextlib.contextmanager
def linked(kind=Connection, refuse=lambda answer: None, take_back=lambda message: None):
    """Return a link and the connection at its other end."""
    ours, theirs = socket.socketpair()
    holds = HoldLog()
    link = DriverLink(kind(ours), holds, Reader(holds), log_to_driver=False)
    link.start([], take_back=take_back, refuse=refuse)
    with contextlib.closing(Connection(theirs)) as peer:
        yield link, peer
        link.close()


@contextlib.contextmanager
def answering(peer, *before):
    """Answer every get, after the messages ``before``, and every other question with its field."""

    def serve():
        with contextlib.suppress(EOFError):
            while True:
                for verb, *fields in peer.receive():
                    if verb == "get":
                        for message in (*before, ("reply", fields[0], ANSWER)):
                            peer.queue(message)
                    elif verb != "cancel":
                        peer.queue(("reply", fields[0], ("plain", fields[1])))
                peer.flush()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        peer.sock.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_ctrl_c_in_the_middle_of_a_message_waits_until_it_is_sent():
    before = signal.getsignal(signal.SIGINT)
    with linked(Interrupted) as (link, peer):
        with pytest.raises(KeyboardInterrupt):
            link.post(("kill", 1, True))
        assert peer.receive(WAIT_S) == [("kill", 1, True)]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_that_comes_as_time_runs_out_is_returned_or_refused(until):
    refused, num_asked = [], 3000

    with linked(refuse=refused.append) as (link, peer), answering(peer):
        answers = [link.ask("get", [5], timeout_s=n % 20 * 1e-5) for n in range(num_asked)]
        returned = [answer for answer in answers if answer is not None]
        assert all(answer == ANSWER for answer in returned)
        assert until(lambda: len(returned) + len(refused) == num_asked)


def test_the_thread_that_waits_reads_itself(until):
    readers = []
    with (
        linked(take_back=lambda message: readers.append(threading.get_ident())) as (link, peer),
        answering(peer, ("free", 1, 0)),
    ):

        def reads_itself():
            return link.ask("get", [5]) == ANSWER and readers[-1] == threading.get_ident()

        assert until(reads_itself)  # the first time the other thread may be there before


def test_ctrl_c_between_reading_and_taking_loses_nothing(until):
    refused = []
    with linked(InterruptedReading, refused.append) as (link, peer), answering(peer):
        for _ in range(20):
            assert link.ask("get", [5]) == ANSWER
        link._connection.is_armed = True
        with pytest.raises(KeyboardInterrupt):
            link.ask("get", [5])
        assert until(lambda: refused == [ANSWER])
        assert link.ask("get", [5]) == ANSWER


def test_many_threads_ask_at_once_and_each_gets_its_own_answer():
    num_wrong = []

    def ask(link, number):
        answers = [link.ask("state", (number, turn)) for turn in range(300)]
        num_wrong.append(sum(a != ("plain", (number, turn)) for turn, a in enumerate(answers)))

    with linked() as (link, peer), answering(peer):
        threads = [threading.Thread(target=ask, args=(link, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert num_wrong == [0, 0, 0, 0]


def test_a_daemon_that_hangs_up_answers_who_waits_and_who_asks_later(until):
    answers = []
    with linked() as (link, peer):
        thread = threading.Thread(target=lambda: answers.append(link.ask("wait", [5])))
        thread.start()
        assert peer.receive(WAIT_S)
        peer.close()
        thread.join()
        assert until(lambda: link.ask("wait", [5]) == answers[0])
        assert answers[0][0] == "error"
        with pytest.raises(EngineError, match="the cluster is gone"):
            link.post(("kill", 1, True))
