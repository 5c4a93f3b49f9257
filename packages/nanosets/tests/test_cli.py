import json
import os
import subprocess
import sys
import time

import pytest

from nanorlhf.nanosets import Dataset, Writer, load_dataset
from nanorlhf.nanosets.cli import main
from nanorlhf.nanosets.reader import File


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.nano"
    rows = {"id": [1, 2, 3], "text": ["x", None, "yyy"], "t": [[1], [], [2, 3]]}
    Dataset.from_dict(rows).save_to_disk(path, metadata={"made": "here"})
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_info_says_how_a_file_is_made(file, capsys):
    code, out, err = run(capsys, "info", file)
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if "metadata" not in line)
    assert (code, err) == (0, "")
    assert (facts["rows"], facts["columns"], facts["chunks"]) == ("3", "3", "1")
    assert facts["bytes"] == str(file.stat().st_size)
    assert 'metadata made  "here"' in out


def test_head_prints_rows_as_json_lines(file, capsys):
    code, out, _ = run(capsys, "head", file, "-n", 2)
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"id": 1, "text": "x", "t": [1]},
        {"id": 2, "text": None, "t": []},
    ]
    assert run(capsys, "head", file, "-n", -1)[:2] == (0, "")
    assert len(run(capsys, "head", file)[1].splitlines()) == 3


def test_schema_prints_names_and_types(file, capsys):
    assert run(capsys, "schema", file)[1] == "id    int64\ntext  utf8\nt     list<int64>\n"


def test_stats_prints_a_line_for_each_column(file, capsys):
    code, out, _ = run(capsys, "stats", file)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        ["column", "type", "nulls", "of", "least", "mean", "most"],
        ["id", "int64", "0", "values", "1", "2", "3"],
        ["text", "utf8", "1", "bytes", "1", "2", "3"],
        ["t", "list<int64>", "0", "items", "0", "1", "2"],
    ]
    assert len(run(capsys, "stats", file, "id")[1].splitlines()) == 2


def test_verify_names_every_file_and_fails_if_one_is_damaged(file, tmp_path, capsys):
    assert run(capsys, "verify", file) == (0, f"{file}: ok\n", "")
    bad = tmp_path / "bad.nano"
    data = bytearray(file.read_bytes())
    data[data.index(b"xyyy")] ^= 1
    bad.write_bytes(data)
    code, out, err = run(capsys, "verify", bad, file, tmp_path / "none.nano")
    assert (code, out) == (1, f"{file}: ok\n")
    first, second = err.splitlines()
    assert first.startswith(f"nanosets: {bad}: column 'text': data of chunk 0: checksum")
    assert "none.nano" in second


def test_convert_writes_another_kind_of_file(file, tmp_path, capsys):
    target = tmp_path / "b.csv"
    assert run(capsys, "convert", file, target) == (0, f"{target}: 3 rows\n", "")
    features = '{"id": "int8", "text": "utf8", "t": "list<int16>"}'
    again = tmp_path / "c.nano"
    options = ("--features", features, "--compression", "zstd", "--checksum", "crc32")
    assert run(capsys, "convert", target, again, *options)[0] == 0
    assert str(load_dataset(again).schema["t"]) == "list<int16>"
    info = run(capsys, "info", again)[1]
    assert "checksum     crc32" in info
    assert "compression  zstd" in info


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head", "none.nano"], "nanosets: none.nano names no file"),
        (["info", "none.nano"], "nanosets: [Errno 2]"),
        (["convert", "a.nano", "b.txt"], "nanosets: b.txt ends in none of"),
        (["stats", "a.nano", "nope"], "nanosets: no column 'nope'"),
    ],
)
def test_what_is_wrong_is_one_line_and_1(arguments, message, file, capsys, monkeypatch):
    monkeypatch.chdir(file.parent)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["head"], ["convert", "a", "b", "--features", "{"]]
)
def test_a_wrong_command_line_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: nanosets" in capsys.readouterr().err


def test_the_module_runs_and_a_closed_pipe_is_no_error(tmp_path):
    path = tmp_path / "a.nano"
    Dataset.from_dict({"a": ["x" * 100] * 20_000}).save_to_disk(path)
    command = f"{sys.executable} -m nanorlhf.nanosets head -n 20000 {path} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"a": "x" * 100}


def test_compact_drops_what_appends_left_and_keeps_the_rest(file, capsys):
    code = "x" * 100
    with Writer(file, append=True, metadata={"more": code}) as writer:
        writer.write({"id": 4, "text": "new", "t": None})
    opened, size, rows = load_dataset(file), file.stat().st_size, load_dataset(file).to_list()
    before = File(file).footer
    status, out, err = run(capsys, "compact", file)
    after = File(file, verify=True).footer
    assert (status, err) == (0, "")
    assert out == f"{file}: {size - file.stat().st_size} bytes shorter\n"
    assert file.stat().st_size < size
    assert (before.chunks, after.chunks) == (2, 1)
    assert (after.schema, after.metadata) == (before.schema, {"made": "here", "more": code})
    assert (after.checksum, after.compression) == (before.checksum, before.compression)
    assert str(load_dataset(file).to_list()) == str(opened.to_list()) == str(rows)


def test_compact_leaves_a_damaged_file_alone(file, capsys):
    data = bytearray(file.read_bytes())
    data[64] ^= 1
    file.write_bytes(data)
    code, _, err = run(capsys, "compact", file)
    assert code == 1
    assert "checksum does not match" in err
    assert file.read_bytes() == data


def test_cache_lists_results_and_removes_what_nobody_asked_for(file, tmp_path, capsys):
    ds, folder = load_dataset(file), tmp_path / "cache"

    def one(row):
        return {"n": 1}

    def two(row):
        return {"n": 2}

    ds.map(one, cache=folder)
    ds.map(two, cache=folder)
    (folder / "mine.nano").write_bytes(b"not a result")
    old = time.time() - 10 * 86_400
    names = {path.name for path in folder.glob("map-*")}
    for name in names:
        os.utime(folder / name, (old, old))
    ds.map(two, cache=folder)  # found, so used
    code, out, _ = run(capsys, "cache", folder)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [line[2] for line in lines[1:3]] == ["10.0", "0.0"]
    assert {line[0] for line in lines[1:3]} == names
    assert lines[-1][:2] == ["2", "results,"]
    for days in ("-1", "nan"):
        code, _, err = run(capsys, "cache", folder, f"--remove-older={days}")
        assert code == 1
        assert "no number of days" in err
    assert {path.name for path in folder.iterdir()} == names | {"mine.nano"}
    code, out, _ = run(capsys, "cache", folder, "--remove-older", 7)
    assert code == 0
    assert out.splitlines()[-1].startswith("1 results,")
    assert out.endswith("removed\n")
    assert {path.name for path in folder.iterdir()} == {lines[2][0], "mine.nano"}
    code, _, err = run(capsys, "cache", tmp_path / "missing")
    assert code == 1
    assert "missing" in err
