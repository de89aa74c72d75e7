"""The house's walls: imports go one way, one place chooses the reactor, one touches private names."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from twisted.web import http, server

ROOT = Path(__file__).parents[2]
GROUND = {
    *("settings", "errors", "logs", "quantities", "hours", "runner_options", "lock", "listener", "urls"),
    *("allow", "secret", "values", "works"),
}
BELOW_SERVICE = {*GROUND, "target", "scheduler", "jobs", "worker", "webhooks", "web", "embedded"}
# What each room may import beside itself. The package alone, which holds the version, is for all.
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "target": GROUND,
    "scheduler": GROUND,
    "jobs": GROUND,
    "embedded": GROUND,
    "worker": {*GROUND, "target", "scheduler", "jobs"},
    "webhooks": {*GROUND, "jobs"},
    "web": {*GROUND, "target", "scheduler", "jobs", "worker", "webhooks"},
    "testing": BELOW_SERVICE,
    "daemon": BELOW_SERVICE,
    "service": {*BELOW_SERVICE, "daemon"},
    "tap": {*GROUND, "service"},
    "cli": {*GROUND, "webhooks", "service", "tap"},
    "foreman.tac": {"tap"},
    "foreman_plugin": set(),
}
REACTOR_ALLOWED = {
    "foreman/service.py",
    "foreman/tap.py",
    "foreman.tac",
    "foreman/embedded/__main__.py",
}
PRIVATE_ALLOWED = {"foreman/web/intake.py"}


def sources() -> list[Path]:
    """Every module that is shipped, and the tac file."""
    return [
        *sorted((ROOT / "foreman").rglob("*.py")),
        *sorted((ROOT / "twisted").rglob("*.py")),
        ROOT / "foreman.tac",
    ]


def room(path: Path) -> str:
    """The first part of a module's name below the package; "" for the package's own file."""
    parts = path.relative_to(ROOT).parts
    if parts[0] != "foreman":
        return path.name.removesuffix(".py")
    return "" if parts[1] == "__init__.py" else parts[1].removesuffix(".py")


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The full name of everything that is imported, at whatever depth, for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*parents, origin] if origin else parents)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """The names that one file imports."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    return set(imported(ast.parse(path.read_text("utf-8")), package))


def rooms_imported(path: Path) -> set[str]:
    """The rooms of foreman that one file imports from."""
    found = {name.split(".")[1] for name in imports_of(path) if name.startswith("foreman.")}
    return found - {"__version__", "__path__"}


def reactor_importers(path: Path) -> bool:
    """Whether a file imports the global reactor."""
    return any(name.startswith("twisted.internet.reactor") for name in imports_of(path))


@cache
def private_names() -> set[str]:
    """The names with one underscore that the classes of twisted.web define or use on themselves."""
    names: set[str] = set()
    for module in (http, server):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_uses(tree: ast.AST) -> set[str]:
    """Names of twisted.web's own that a module uses, and does not define itself."""
    used: set[str] = set()
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            (used if isinstance(node.ctx, ast.Load) else own).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twisted.web"):
            used |= {alias.name for alias in node.names}
    return (used - own) & private_names()


def test_imports_go_one_way() -> None:
    """Ground floor <- the rooms <- worker <- web <- service <- tap <- cli; see MAY_IMPORT."""
    forbidden = {}
    for path in sources():
        here = room(path)
        allowed = MAY_IMPORT[here] if here else set()
        if wrong := rooms_imported(path) - {here} - allowed:
            forbidden[str(path.relative_to(ROOT))] = wrong
    assert not forbidden


def test_only_roots_import_the_reactor() -> None:
    """Importing it installs it: everything below is handed its clock."""
    importers = {str(path.relative_to(ROOT)) for path in sources() if reactor_importers(path)}
    assert importers <= REACTOR_ALLOWED
    assert "foreman/tap.py" in importers  # the check sees what it looks for


def test_only_intake_touches_private_names_of_twisted_web() -> None:
    """A Twisted upgrade can then break one module only."""
    found = {}
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"))
        if uses := private_uses(tree):
            found[str(path.relative_to(ROOT))] = uses
    assert set(found) == PRIVATE_ALLOWED, found


def test_policy_knows_only_values() -> None:
    """The policy is pure: no clock, no Deferred, no log, nothing of ours but the keys."""
    names = imports_of(ROOT / "foreman/scheduler/policy.py")
    assert {name.split(".")[0] for name in names} <= {"enum", "collections", "attrs", "foreman"}
    ours = {name for name in names if name.startswith("foreman.")}
    assert ours == {"foreman.scheduler.keys.ModelKey", "foreman.scheduler.keys.Wanted"}
