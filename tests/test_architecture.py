"""The house: imports run one way, every package is typed, no module grows too long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ADAPTERS = sorted(path for path in (ROOT / "adapters").iterdir() if path.is_dir())
PACKAGES = [ROOT / "mailgate", *ADAPTERS]
SOURCES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 600

LAYERS: list[set[str]] = [
    {"stage", "errors"},
    {"verdict", "syntax", "limits", "settings", "invocation", "fork", "logs", "watchdog"},
    {"address", "headers", "session", "deadline", "threads", "eager", "flush", "stdio"},
    {"content", "head", "mime", "message"},
    {"state", "policy"},
    {"chain", "question", "engine"},
    {"adapter", "outcome", "lint", "listen", "server"},
    {"config"},
    {"workers", "gateway", "testing", "contract", "pytest_plugin"},
    {"cli", "__main__"},
]
"""The modules of the core, those that import nothing first: a row imports from itself and above."""

WITHOUT_IMPORTS = {"stage", "errors"}


def module_of(path: Path) -> str:
    """Return the dotted name of a source file."""
    base = ROOT if path.is_relative_to(ROOT / "mailgate") else ROOT / "adapters"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs, late imports in functions among it; not what type checkers alone see."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from statements(child)


def imported(path: Path) -> set[str]:
    """Return the modules that a source file imports."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & NAMES or {node.module}
    return found


NAMES = {module_of(path) for path in SOURCES}
IMPORTS = {module_of(path): imported(path) for path in SOURCES}


def row_of(module: str) -> int:
    """Return the layer of a module of the core."""
    name = module.split(".")[1]
    rows = [at for at, row in enumerate(LAYERS) if name in row]
    assert rows, f"{module} has no place in LAYERS"
    return rows[0]


CORE = sorted(name for name in NAMES if name.startswith("mailgate."))


# -- imports -------------------------------------------------------------------------------------


def test_every_module_of_the_core_has_a_place() -> None:
    assert {name.split(".")[1] for name in CORE} == set().union(*LAYERS)


@pytest.mark.parametrize("module", CORE)
def test_imports_run_one_way(module: str) -> None:
    above = [other for other in IMPORTS[module] if other.startswith("mailgate.")]
    assert [other for other in above if row_of(other) > row_of(module)] == []


@pytest.mark.parametrize("module", sorted(NAMES))
def test_no_module_imports_itself_in_the_end(module: str) -> None:
    seen: set[str] = set()
    ahead = [*IMPORTS[module]]
    while ahead:
        other = ahead.pop()
        if other not in seen:
            seen.add(other)
            ahead += IMPORTS.get(other, ())
    assert module not in seen


@pytest.mark.parametrize("name", sorted(WITHOUT_IMPORTS))
def test_the_first_words_import_nothing_of_ours(name: str) -> None:
    assert not {other for other in IMPORTS[f"mailgate.{name}"] if other.startswith("mailgate")}


@pytest.mark.parametrize("module", sorted(n for n in NAMES if n.partition(".")[0] == "mailgate"))
def test_the_core_knows_no_adapter(module: str) -> None:
    assert not {other for other in IMPORTS[module] if other.startswith("mailgate_")}


@pytest.mark.parametrize("package", [path.name for path in ADAPTERS])
def test_adapters_do_not_know_each_other(package: str) -> None:
    for module, others in IMPORTS.items():
        if module.partition(".")[0] == package:
            ours = {other for other in others if other.startswith("mailgate_")}
            assert {other.partition(".")[0] for other in ours} <= {package}


@pytest.mark.parametrize("package", [path.name for path in ADAPTERS])
def test_an_adapter_uses_the_core_below_the_gateway(package: str) -> None:
    """It is handed an engine and its own options: it reads no configuration."""
    above = {"mailgate.config", "mailgate.gateway", "mailgate.testing", "mailgate.cli"}
    for module, others in IMPORTS.items():
        if module.partition(".")[0] == package:
            assert not others & above


IO = {
    *("asyncio", "fcntl", "io", "logging", "os", "select", "selectors", "signal", "socket"),
    *("subprocess", "sys", "threading", "time", "datetime", "random", "tempfile"),
}


@pytest.mark.parametrize("package", ADAPTERS, ids=lambda path: path.name)
def test_every_adapter_has_the_same_two_rooms(package: Path) -> None:
    assert (package / "wire.py").exists()
    assert (package / "adapter.py").exists()
    assert not IMPORTS[f"{package.name}.wire"] & IO


@pytest.mark.parametrize("name", ["syntax", "headers", "verdict", "address"])
def test_what_is_pure_does_no_io(name: str) -> None:
    assert not IMPORTS[f"mailgate.{name}"] & IO


# -- packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_is_typed(package: Path) -> None:
    assert (resources.files(package.name) / "py.typed").is_file()
    assert (package / "py.typed").exists()


def test_a_policy_author_finds_the_names_of_the_guide() -> None:
    """policy-api.md 4, and design.md 3 on top of it."""
    import mailgate

    public = {name for name in vars(mailgate) if name[0].isupper()}
    assert public == {
        *("Policy", "Session", "Message", "Address", "Headers", "PerSession", "PerMessage"),
        *("Accept", "Reject", "Defer", "Disconnect", "Discard", "Quarantine", "Verdict"),
        *("Authenticated", "Attempt", "Event", "Ending", "TLS"),
    }


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_postpones_annotations(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree)
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    code = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert future or not code


EMPTY_WORDS = ("Manager", "Helper", "Util", "Utils", "Base")


@pytest.mark.parametrize(
    "path", [*SOURCES, *TESTS, *ADAPTERS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_name_says_nothing(path: Path) -> None:
    assert path.stem.lower() not in {word.lower() for word in EMPTY_WORDS} | {"helpers", "common"}
    if path.is_dir() or path in TESTS:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            assert not node.name.endswith(EMPTY_WORDS)
            assert not node.name.lower().endswith(("_helper", "_util", "_utils", "_manager"))
