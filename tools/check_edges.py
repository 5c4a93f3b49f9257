"""Fail when a package's imports of its siblings differ from what its pyproject declares.

Two rules: the siblings a package imports are exactly those in ``[project] dependencies``, and a
sibling is used through its public names only (``from nanorlhf.nanotron import Mesh``), never
through a module inside it.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "nanorlhf"


def declared(package: Path, siblings: set[str]) -> set[str]:
    """Return the siblings named in ``[project] dependencies``."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\s\[<>=!~;]", dep, maxsplit=1)[0] for dep in project["dependencies"]}
    return names & siblings


def sibling_imports(package: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(where, module)`` for each absolute import of another package of the namespace."""
    for path in sorted(package.glob("src/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                parent = node.module or ""
                modules = (
                    [f"{parent}.{alias.name}" for alias in node.names]
                    if parent == NAMESPACE
                    else [parent]
                )
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            for module in modules:
                head, _, rest = module.partition(".")
                if head == NAMESPACE and rest.split(".")[0] != package.name:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", module


def main() -> int:
    """Print one line for each wrong edge; the exit status is 1 when there is any."""
    packages = sorted(p.parent for p in ROOT.glob("packages/*/pyproject.toml"))
    siblings = {p.name for p in packages}
    problems: list[str] = []
    for package in packages:
        want, have = declared(package, siblings), set()
        for where, module in sibling_imports(package):
            name = module.split(".")[1]
            have.add(name)
            if name not in want:
                problems.append(f"{where}: imports {module}, which {package.name} does not declare")
            if module.count(".") > 1:
                problems.append(f"{where}: reaches into {module}; use {NAMESPACE}.{name}")
        problems += [f"{package.name}: declares {n} but imports it nowhere" for n in want - have]
    print(*sorted(problems), sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
