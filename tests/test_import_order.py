"""The order of the rooms: modules import from their left, and never in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

import dilax

ROOT = Path(dilax.__file__).parent
ROOMS = (
    "ops",
    "models",
    "profiling",
    "data",
    "evaluation",
    "crf",
    "weights",
    "inference",
    "training",
    "report",
    "cli",
)


def _name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(source):
    """The modules of dilax that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in full]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "dilax")


GRAPH = {name: set(_imports(path.read_text("utf-8"))) for name, path in FILES.items()}


def _room(module):
    if module == "dilax.__main__":
        return "cli"
    return module.split(".")[1] if "." in module else "dilax"


def _allowed(importer, imported):
    """Whether a room may import from another: from its left, and from runtime."""
    if importer in (imported, "dilax"):
        return True
    if importer == "runtime" or imported in ("runtime", "dilax"):
        return imported == "runtime"
    return ROOMS.index(imported) < ROOMS.index(importer)


def test_every_room_has_a_place_in_the_order():
    assert {_room(module) for module in FILES} <= {*ROOMS, "runtime", "dilax"}
    assert {"data", "ops", "models"} <= {_room(m) for m in FILES}


@pytest.mark.parametrize("module", FILES)
def test_imports_come_from_the_same_room_runtime_or_the_left(module):
    wrong = [i for i in GRAPH[module] if not _allowed(_room(module), _room(i))]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    order = graphlib.TopologicalSorter(GRAPH).static_order()
    assert {*order} >= {*FILES}  # or CycleError is raised, which names them


def test_no_room_or_file_is_a_drawer_for_everything():
    parts = {part for module in FILES for part in module.split(".")}
    assert not parts & {"utils", "util", "common", "helpers", "helper", "misc"}


@pytest.mark.parametrize(
    "source, imported",
    [
        ("import numpy, dilax.runtime.compiling", {"dilax.runtime.compiling"}),
        ("from dilax.ops import unpool, pooling", {"dilax.ops", "dilax.ops.pooling"}),
        ("def f():\n  from dilax.training import train", {"dilax.training"}),
        ("from jax import numpy", set()),
    ],
)
def test_the_reader_of_imports_finds(source, imported):
    assert set(_imports(source)) == imported


@pytest.mark.parametrize(
    "importer, imported, allowed",
    [
        ("models", "ops", True),
        ("training", "models", True),
        ("data", "ops", True),
        ("models", "training", False),
        ("ops", "data", False),
        ("models", "dilax", False),
        ("dilax", "training", True),
    ],
)
def test_the_order_allows(importer, imported, allowed):
    assert _allowed(importer, imported) is allowed
