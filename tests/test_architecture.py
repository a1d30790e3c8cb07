"""The rules that keep the code readable, checked over its syntax trees: layers, cycles, sizes, drivers, file access."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shardlite"
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 35
LONG_FUNCTIONS_SHARE = 0.1

# From the bottom to the top; the modules of one row may import each other, as long as there is no cycle.
LAYERS = (
    ("errors", "config", "driver", "names"),
    ("connection",),
    ("router",),
    ("sql",),
    ("shard",),
    ("execute",),
    ("transaction",),
    ("topology",),
    ("manager",),
    ("api",),
    ("integrations", "dbapi", "aio"),
    ("__init__",),
    ("cli", "__main__"),
)

# Modules that may open files by other means than SQLite: never a database or -shm file, whose closing would drop
# this process's locks.
FILE_READERS = {
    "config": "configuration files",
    "connection.wal": "-wal files, on which SQLite holds no lock",
    "router.fence": "its own file, which is memory-mapped",
    "transaction.file_layer": "commit logs, which are no databases, and the directory itself, to sync it",
    "execute.files": "the directory itself, to sync it",
    "topology.text_rows": "CSV and NDJSON sources",
    "topology.source": "the first bytes of an import source, before any connection to it",
    "topology.workspace": "files of a directory that nobody else has, once all connections are closed",
    "topology.exporter": "the file just written, once its connection is closed, to sync it",
    "cli.app": "the null device, in place of a closed pipe",
    "cli.create": "the file of CREATE statements",
    "cli.reference": "the page of the reference",
    "cli.demo": "copies its shards, once all connections are closed",
}
# The SQL analysis is pure: it sees no database handle, no thread and no clock. (A lock around a late import is fine.)
IMPURE = {"sqlite3", "time", "os", "asyncio", "concurrent", "shardlite.driver", "shardlite.connection"}
OPENERS = {"open", "read_bytes", "write_bytes", "read_text", "write_text"}
COPIERS = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move"}


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module's tree by its dotted name without ``shardlite.``; a package by the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def path_of(module: str) -> Path:
    plain = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return plain if plain.exists() else PACKAGE.joinpath(*module.split("."), "__init__.py")


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str | None, int]]:
    """Yield (module, name or None, line) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full"
            for alias in node.names:
                yield node.module or "", alias.name, node.lineno


def own_imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield (own module, line) that a module imports."""
    for target, name, line in imported_names(modules()[module]):
        if target == "shardlite":
            yield (name if name in modules() else "__init__") or "__init__", line
        elif target.startswith("shardlite."):
            inner = target.removeprefix("shardlite.")
            yield (f"{inner}.{name}" if f"{inner}.{name}" in modules() else inner), line


def layer_of(module: str) -> int:
    top = module.split(".")[0]
    for level, names in enumerate(LAYERS):
        if top in names:
            return level
    raise AssertionError(f"shardlite/{top} belongs to no layer: add it to LAYERS")


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_downward(module: str) -> None:
    for target, line in own_imports(module):
        assert target in modules(), f"{module}, line {line}: there is no shardlite.{target}"
        same_package = target.split(".")[0] == module.split(".")[0]
        downward = layer_of(target) < layer_of(module)
        bottom = layer_of(target) == layer_of(module) and "." not in target
        assert same_package or downward or bottom, f"{module}, line {line}: imports {target}, which lies above it"


def test_no_import_cycles() -> None:
    # What only the type checker imports makes no cycle at run time; the layers above hold for it too.
    typing_only = {
        (module, line)
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    graph = {
        module: sorted({target for target, line in own_imports(module) if (module, line) not in typing_only})
        for module in modules()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "import cycle: " + " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_is_not_too_long(module: str) -> None:
    lines = len(path_of(module).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_MODULE_LINES, f"{module} has {lines} lines: split it"


def function_lengths() -> Iterator[tuple[str, int]]:
    """Yield each function's name and its lines of code, the docstring and the signature left out."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{module}.{node.name}", length


def test_most_functions_are_short() -> None:
    lengths = dict(function_lengths())
    long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert len(long) <= len(lengths) * LONG_FUNCTIONS_SHARE, f"too many long functions: {long}"


def test_only_the_driver_module_imports_a_driver() -> None:
    for module, tree in modules().items():
        for target, _, line in imported_names(tree):
            if target.split(".")[0] in ("sqlite3", "pysqlite3", "apsw"):
                assert module == "driver", f"{module}, line {line}: take sqlite3 from shardlite.driver"


def test_tests_take_the_driver_too() -> None:
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for target, _, line in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            assert target.split(".")[0] != "sqlite3", f"{path.name}, line {line}: take sqlite3 from shardlite.driver"


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.split(".")[0] == "sql"))
def test_sql_analysis_is_pure(module: str) -> None:
    for target, name, line in imported_names(modules()[module]):
        for candidate in (target, target.split(".")[0], ".".join(target.split(".")[:2]), f"{target}.{name}"):
            assert candidate not in IMPURE, f"sql.{module}, line {line}: imports {candidate}"


def file_accesses(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (call, line) of the calls that open or copy files by other means than SQLite."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open":
            yield "open", node.lineno
        elif isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            # A pool, a table, the catalog may have an `open` of their own: a class's, by its capital.
            if called.attr in OPENERS and not owner[:1].isupper() and owner not in ("self", "cls", "webbrowser"):
                yield f"{owner}.{called.attr}", node.lineno
            elif owner == "shutil" and called.attr in COPIERS:
                yield f"shutil.{called.attr}", node.lineno


def test_files_are_opened_by_sqlite_alone() -> None:
    for module, tree in modules().items():
        for call, line in file_accesses(tree):
            assert module in FILE_READERS, (
                f"{module}, line {line}: {call}. Closing any descriptor of a database drops the process's locks on it; "
                "if this is no database file, say so in FILE_READERS"
            )


def test_the_list_of_file_readers_is_current() -> None:
    readers = {module for module, tree in modules().items() if any(file_accesses(tree))}
    assert set(FILE_READERS) <= readers, "modules listed without need"


def test_only_the_command_line_prints() -> None:
    for module, tree in modules().items():
        if module.split(".")[0] in ("cli", "__main__"):
            continue
        for node in ast.walk(tree):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not printing, f"{module}, line {node.lineno}: a library doesn't print"


def test_public_things_are_documented() -> None:
    missing = []
    for module, tree in modules().items():
        if not ast.get_docstring(tree):
            missing.append(module)
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{module}.{node.name}")
    assert not missing
