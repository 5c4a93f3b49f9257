"""Bars show on a terminal and nowhere else."""

import io
import sys

from nanorlhf.nanosets import Dataset
from nanorlhf.nanosets.transcode import transcode


def long_work(folder):
    ds = Dataset.from_dict({"a": range(10)})
    ds.map(lambda row: {"b": row["a"]}, desc="the map")
    ds.filter(lambda row: row["a"] > 3)
    ds.save_to_disk(folder / "a.nano")
    transcode(folder / "a.nano", folder / "b.nano")


def test_nothing_is_shown_where_there_is_no_terminal(tmp_path, capfd):
    long_work(tmp_path)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self):
        return True


def test_each_long_verb_shows_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    long_work(tmp_path)
    shown = terminal.getvalue()
    assert all(f"{verb}:" in shown for verb in ("the map", "filter", "save", "write"))
