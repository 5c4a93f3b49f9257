import itertools
import sys
import threading

from hypothesis import given
from hypothesis import strategies as st

from nanorlhf.nanoray.logs import TAIL_LINES, Deduplicator, Lines, Printer


@given(st.binary(), st.lists(st.integers(0, 200)))
def test_lines_do_not_depend_on_how_the_stream_is_cut(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    lines, whole = Lines(), Lines()
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    found = [line for piece in pieces for line in lines.feed(piece)] + lines.rest()
    assert found == whole.feed(data) + whole.rest()
    assert len(found) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


def test_the_tail_holds_the_last_lines():
    lines = Lines()
    lines.feed(b"".join(b"%d\n" % n for n in range(50)))
    assert lines.tail == [str(n) for n in range(50 - TAIL_LINES, 50)]


def test_a_line_without_an_end_does_not_grow_for_ever():
    lines = Lines()
    shown = [line for _ in range(100) for line in lines.feed(b"x" * 10_000)]
    assert sum(map(len, shown)) + len(lines.rest()[0]) == 1_000_000
    assert max(map(len, shown)) < 80_000


def test_a_progress_bar_shows_its_last_state():
    assert Lines().feed(b"10%\r50%\r100%\nbye\r\n") == ["100%", "bye"]


def test_one_process_may_repeat_itself():
    once = Deduplicator()
    shown = [once.feed("(f pid=1)", "again", now_s=t)[-1] for t in range(3)]
    assert shown == ["(f pid=1) again"] * 3


def test_many_processes_that_say_the_same_are_counted():
    once = Deduplicator()
    shown = [line for n in range(8) for line in once.feed(f"({n})", f"rank {n}", now_s=n / 10)]
    assert shown == ["(0) rank 0"]
    assert once.due(now_s=4.0) == []
    assert once.due(now_s=5.0) == ["(7) rank 7 [7 lines like it from other processes]"]
    assert once.due(now_s=99.0) == []


def test_what_differs_in_words_is_shown_at_once():
    once = Deduplicator()
    assert once.feed("(1)", "left", now_s=0) == ["(1) left"]
    assert once.feed("(2)", "right", now_s=0) == ["(2) right"]
    assert once.feed("(3)", "", now_s=0) == ["(3) "]
    assert once.feed("(4)", "", now_s=0) == ["(4) "]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.floats(0, 3))))
def test_no_line_is_lost_uncounted(said):
    once, now, shown = Deduplicator(), 0.0, []
    for source, line, wait_s in said:
        now += wait_s
        shown += once.feed(f"({source})", line, now_s=now)
    shown += once.due(now_s=now + 10)
    counts = [int(text.split("[")[1].split()[0]) if "[" in text else 1 for text in shown]
    assert sum(counts) == len(said)


def test_one_thread_prints_while_others_add(capsys):
    printer, num_lines, interval_s = Printer(), 6000, sys.getswitchinterval()

    def add(source):
        for n in range(num_lines):
            word = chr(97 + n % 26) + chr(97 + n // 26 % 26)
            printer.add(source, "stdout", [word], now_s=n / 10)

    threads = [threading.Thread(target=add, args=(source,)) for source in ("(f)", "(g)")]
    sys.setswitchinterval(1e-6)  # take turns as often as can be
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            printer.print(now_s=float("inf"))
    finally:
        sys.setswitchinterval(interval_s)
    for thread in threads:
        thread.join()
    printer.print(now_s=float("inf"))
    printed = "".join(capsys.readouterr())
    more = sum(int(words.split()[0]) for words in printed.split("[")[1:])
    assert printed.count("\n") + more - printed.count(" lines like it") == 2 * num_lines
