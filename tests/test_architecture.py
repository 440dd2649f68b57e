"""The floor plan, enforced: who may import whom, who does I/O, who may hold cancellation away."""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "engine"
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in sorted(ENGINE.rglob("*.py"))
}
TESTS = ROOT / "tests"

#: The files on the ground floor of `engine/`: the values which travel, and what any room may use.
VALUES = {
    "choices",
    "content",
    "email_message",
    "errors",
    "headers",
    "hints",
    "https",
    "message",
    "nursery",
    "outcome",
    "outcomes",
    "paths",
    "route",
    "security",
    "setting_proxy",
    "setting_types",
    "settings",
    "showing",
    "txt_fields",
    "units",
}
#: Room: the rooms it may import besides itself.  Changing the plan means changing this.
FLOOR_PLAN = {
    "smtp": set(),
    "values": {"smtp"},
    "net": {"values", "smtp"},
    "routing": {"values", "smtp"},
    "report": {"values", "smtp"},
    "queue": {"values", "smtp"},
    "delivery": {"net", "report", "values", "smtp"},
    "engine": {"delivery", "net", "queue", "report", "routing", "values", "smtp"},
    # The engine for programs that are not in Trio; nothing below knows of it.
    "embedding": {"engine", "report", "values", "smtp"},
    "worker": {
        "engine",
        "delivery",
        "net",
        "queue",
        "report",
        "routing",
        "testing",
        "values",
        "smtp",
    },
    "testing": {
        "engine",
        "delivery",
        "net",
        "queue",
        "report",
        "routing",
        "values",
        "smtp",
    },
}
#: Of the worker, the demonstration alone may use the fakes that are made for tests.
USES_FAKES = {"engine.worker.demo"}
#: What stands in `engine/` itself and is no value.
ROOM_OF = dict.fromkeys(
    (
        "__init__",
        "arguments",
        "bounce_facts",
        "bounces",
        "callout",
        "dispatch",
        "engine",
        "single",
        "stored",
        "tls_files",
        "tls_reports",
    ),
    "engine",
)
ROOM_OF |= dict.fromkeys(("aio", "blocking", "calls", "guest", "hosted", "signature"), "embedding")
ROOM_OF["__main__"] = "worker"

IO_MODULES = {"trio", "socket", "ssl", "select", "selectors", "threading", "sqlite3", "subprocess"}
IO_MODULES |= {"os", "time", "random", "secrets", "apsw"}
RUNTIME_DEPENDENCIES = {"trio", "idna", "dns", "cryptography", "httpcore2"}
RUNTIME_DEPENDENCIES |= {"pydantic", "pydantic_core", "click", "rich", "scramp", "apsw"}

#: Modules without decisions of their own: what they hold is tested where it is used.
UNMIRRORED = {"__init__", "__main__"}
UNMIRRORED_MODULES = {
    "engine.errors",
    "engine.hints",
    "engine.queue.errors",
    "engine.queue.store",
    "engine.route",
    "engine.security",
    "engine.smtp.errors",
}

each_module = pytest.mark.parametrize("name", MODULES)


@cache
def tree_of(name):
    return ast.parse(MODULES[name].read_text())


def room_of(name):
    """The room of `engine.net.port` is `net`, that of `engine.outcome` is `values`."""
    parts = name.split(".")[1:] or ["__init__"]
    if parts[0] in VALUES:
        return "values"
    return ROOM_OF.get(parts[0], parts[0])


def imports_of(name):
    """Every module a module names in an import, wherever: in functions and for types, too."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                # `from engine.report import events` imports a module.
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module or ""


@each_module
def test_every_module_stands_in_a_room_of_the_plan(name):
    assert room_of(name) in FLOOR_PLAN


@each_module
def test_imports_follow_the_floor_plan(name):
    room = room_of(name)
    for imported in imports_of(name):
        if imported.split(".")[0] == "engine":
            other = room_of(imported)
            assert other == room or other in FLOOR_PLAN[room], f"{name} imports {imported}"
            if other == "testing" and room != "testing":
                assert name in USES_FAKES, f"{name} imports {imported}"


@each_module
def test_imports_are_absolute(name):
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}"


@each_module
def test_imports_from_outside_are_those_we_agreed_on(name):
    for imported in imports_of(name):
        top = imported.split(".")[0]
        allowed = top == "engine" or top in sys.stdlib_module_names or top in RUNTIME_DEPENDENCIES
        assert allowed, f"{name} imports {imported}"


#: A source of chance may come in as an argument, typed.
NOT_FOR_CLAIMANTS = IO_MODULES - {"random"}


def claims_no_io(name):
    return "Knows no I/O" in (ast.get_docstring(tree_of(name)) or "")


@each_module
def test_who_knows_no_io_imports_none(name):
    forbidden = IO_MODULES if room_of(name) == "smtp" else NOT_FOR_CLAIMANTS
    if room_of(name) == "smtp" or claims_no_io(name):
        for imported in imports_of(name):
            assert imported.split(".")[0] not in forbidden, f"{name} imports {imported}"


@pytest.mark.parametrize("name", ["verdict", "walk", "envelope", "parcel", "session_terms"])
def test_the_decisions_of_delivery_know_no_io(name):
    assert claims_no_io(f"engine.delivery.{name}")


# -- shields ------------------------------------------------------------------------------------

WITH_DEADLINE = {"move_on_after", "move_on_at", "fail_after", "fail_at"}


def name_of(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_bounded(call):
    if name_of(call.func) in WITH_DEADLINE:
        return True
    keywords = {keyword.arg for keyword in call.keywords}
    return name_of(call.func) == "CancelScope" and keywords & {"deadline", "relative_deadline"}


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


def shields_without_deadline(tree):
    """Yield the lines where a scope is shielded with no deadline beside it."""
    # A session's shields get their deadline in the moment of cancellation; a test below holds that.
    session = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name == "Session"
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        for inner in ast.walk(method)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            shields = [k for k in node.keywords if k.arg == "shield" and not is_false(k.value)]
            if shields and not is_bounded(node) and node not in session:
                yield node.lineno
        elif isinstance(node, ast.Assign) and not is_false(node.value):
            targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
            if any(target.attr == "shield" for target in targets):
                yield node.lineno


@each_module
def test_every_shield_has_a_deadline(name):
    assert list(shields_without_deadline(tree_of(name))) == []


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("with trio.CancelScope(shield=True): ...", True),
        ("with trio.CancelScope(shield=it): ...", True),
        ("scope.shield = True", True),
        ("class Pool:\n  def __init__(self):\n    self.scope = CancelScope(shield=True)", True),
        ("with trio.CancelScope(deadline=5, shield=True): ...", False),
        ("with trio.move_on_after(5, shield=True): ...", False),
        ("with move_on_at(5, shield=True): ...", False),
        ("scope.shield = False", False),
        ("class Session:\n  def __init__(self):\n    self.scope = CancelScope(shield=True)", False),
    ],
)
def test_a_shield_without_deadline_would_be_found(source, is_found):
    assert bool(list(shields_without_deadline(ast.parse(source)))) is is_found


def test_a_cancelled_session_bounds_its_shield():
    (session,) = [
        node
        for node in ast.walk(tree_of("engine.delivery.session"))
        if isinstance(node, ast.ClassDef) and node.name == "Session"
    ]
    (cancelled,) = [
        node
        for node in session.body
        if isinstance(node, ast.FunctionDef) and node.name == "_cancelled"
    ]
    assert "self._conversing.deadline =" in ast.unparse(cancelled)


# -- cancellation -------------------------------------------------------------------------------


@each_module
def test_nobody_swallows_cancellation(name):
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if re.search(r"\b(Cancelled|BaseException)\b", caught):
                last = node.body[-1]
                is_raised = isinstance(last, ast.Raise) and last.exc is None
                assert is_raised, f"{name}, line {node.lineno}"


# -- tests and texts ----------------------------------------------------------------------------


@each_module
def test_every_module_has_its_mirror_test(name):
    path = MODULES[name].relative_to(ENGINE)
    if path.stem not in UNMIRRORED and name not in UNMIRRORED_MODULES:
        mirror = TESTS / path.with_name(f"test_{path.name}")
        assert mirror.is_file(), f"{mirror.relative_to(ROOT)} is missing"


def test_what_needs_no_mirror_exists_and_has_no_function_beyond_values():
    for name in UNMIRRORED_MODULES:
        functions = [
            node.name
            for node in tree_of(name).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert functions == [], name


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def remarks_of(name):
    """Yield docstrings and blocks of comments, each on one line; what users read is no remark."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, DOCUMENTED):
            yield " ".join((ast.get_docstring(node) or "").split())
    comments = {}
    with MODULES[name].open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                comments[token.start[0]] = token.string.lstrip("#: ")
    blocks = [" " * (line - 1 in comments) + comments[line] for line in sorted(comments)]
    yield from "\n".join(blocks).replace("\n ", " ").split("\n")


@each_module
def test_every_rfc_is_named_with_its_section(name):
    for remark in remarks_of(name):
        for match in re.finditer(r"\bRFCs?[ -]?(\d{3,5})(.{0,12})", remark):
            assert re.match(r" (§|Appendix [A-Z])", match[2]), f"{match[0]!r} needs a section"


@each_module
def test_every_module_says_what_it_is(name):
    if MODULES[name].read_text().strip():
        assert ast.get_docstring(tree_of(name))
