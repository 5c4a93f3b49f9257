"""``nanosets``: what is in dataset files, whether they are whole, and from one kind to another."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from .cache import kept_in
from .checksum import Checksum
from .errors import CorruptFileError, NanosetsError
from .literals import as_json
from .load import load_dataset
from .preview import cell
from .reader import File
from .stats import stats_of
from .transcode import compact, transcode

DAY_S = 86_400
CHECKSUMS: tuple[Checksum, ...] = ("crc32", "xxh3_64")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 for done, 1 for a file that is missing or wrong.

    A wrong command line ends the process with 2.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except BrokenPipeError:
        # The reader of a pipe has seen enough. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (NanosetsError, OSError, ValueError, ImportError, KeyError) as error:
        # A KeyError spells its message with quotes around it.
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        print(f"nanosets: {' '.join(message.split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("nanosets", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        found.set_defaults(command=command)
        return found

    add("info", _info).add_argument("path", help="a .nano file")
    head = add("head", _head)
    head.add_argument("path", help="a dataset file of any kind")
    head.add_argument("-n", type=int, default=5, help="rows (default: 5)")
    add("schema", _schema).add_argument("path", help="a dataset file of any kind")
    stats = add("stats", _stats)
    stats.add_argument("path", help="a dataset file of any kind")
    stats.add_argument("columns", nargs="*", help="columns (default: all)")
    add("verify", _verify).add_argument("paths", nargs="+", metavar="path", help=".nano files")
    add("compact", _compact).add_argument("paths", nargs="+", metavar="path", help=".nano files")
    cache = add("cache", _cache)
    cache.add_argument("folder", help="that of map(cache=)")
    cache.add_argument(
        "--remove-older", type=float, metavar="DAYS", help="remove what was not used for so long"
    )
    convert = add("convert", _convert)
    convert.add_argument("source", help="a dataset file of any kind")
    convert.add_argument("target", help="the file to write; its suffix says its kind")
    convert.add_argument("--features", type=json.loads, help='types: {"tokens": "list<int32>"}')
    convert.add_argument("--compression", choices=["zstd"], help="of a .nano file")
    convert.add_argument("--checksum", choices=CHECKSUMS, default="auto", help="of a .nano file")
    return parser


def _info(arguments: argparse.Namespace) -> int:
    """Show how a .nano file is made."""
    file = File(arguments.path)
    footer = file.footer
    facts = {
        "rows": footer.rows,
        "columns": len(footer.schema),
        "chunks": footer.chunks,
        "bytes": os.path.getsize(file.path),
        "checksum": footer.checksum,
        "compression": footer.compression or "none",
        "uuid": file.uuid.hex(),
        **{f"metadata {name}": json.dumps(value) for name, value in footer.metadata.items()},
    }
    _print_table([[name, str(value)] for name, value in facts.items()])
    return 0


def _head(arguments: argparse.Namespace) -> int:
    """Print the first rows as JSON lines."""
    ds = load_dataset(arguments.path)
    for row in ds.select(range(min(max(arguments.n, 0), len(ds)))):
        print(as_json(row))
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    """Print the columns' names and types."""
    _print_table([[name, str(t)] for name, t in load_dataset(arguments.path).schema.items()])
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    """Print nulls, least, mean and most of each column."""
    ds = load_dataset(arguments.path)
    wanted = ds.select_columns(arguments.columns) if arguments.columns else ds
    rows = [["column", "type", "nulls", "of", "least", "mean", "most"]]
    for name, column in wanted.columns.items():
        found = stats_of(column)
        mean = "-" if found.mean is None else f"{found.mean:.6g}"
        ends = ["-" if end is None else cell(end) for end in (found.low, found.high)]
        kind = cell(str(column.dtype))
        rows.append([name, kind, str(found.nulls), found.measure, ends[0], mean, ends[1]])
    _print_table(rows)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Compare every checksum of .nano files, and check every column."""
    failed = 0
    for path in arguments.paths:
        try:
            File(path, verify=True)
            print(f"{path}: ok")
        except (CorruptFileError, OSError) as error:
            print(f"nanosets: {error}", file=sys.stderr)
            failed = 1
    return failed


def _compact(arguments: argparse.Namespace) -> int:
    """Write .nano files anew without what appends left behind."""
    for path in arguments.paths:
        print(f"{path}: {compact(path)} bytes shorter")
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    """List the results in a folder of map(cache=), or remove old ones."""
    kept, days = kept_in(arguments.folder), arguments.remove_older
    if days is not None:
        if not days >= 0:
            raise ValueError(f"--remove-older {days} is no number of days; give 0 for all results")
        kept = [one for one in kept if one.idle_s >= days * DAY_S]
        for one in kept:
            one.path.unlink(missing_ok=True)
    rows = [["result", "bytes", "days unused"]]
    rows += [[one.path.name, str(one.bytes), f"{one.idle_s / DAY_S:.1f}"] for one in kept]
    _print_table(rows)
    what = "kept" if days is None else "removed"
    print(f"{len(kept)} results, {sum(one.bytes for one in kept)} bytes {what}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    """Write the rows of a file into a .nano, .jsonl, .json, .csv, .parquet or .arrow file."""
    rows = transcode(
        arguments.source,
        arguments.target,
        features=arguments.features,
        checksum=arguments.checksum,
        compression=arguments.compression,
    )
    print(f"{arguments.target}: {rows} rows")
    return 0


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())
