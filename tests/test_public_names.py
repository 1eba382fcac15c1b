"""Every public name is documented, with an example that runs."""

import doctest
import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest
import yaml

import dilax

ROOT = Path(__file__).parent.parent
ROOMS = ["dilax"] + [f"dilax.{m.name}" for m in pkgutil.iter_modules(dilax.__path__)]
ROOMS = [r for r in ROOMS if r == "dilax" or (ROOT / r.replace(".", "/")).is_dir()]


def _public(room):
    """Its functions and classes."""
    module = importlib.import_module(room)
    found = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    # A name for a type, such as dict[str, Array], has no docstring of its own.
    found = {n: v for n, v in found.items() if hasattr(v, "__module__")}
    return {
        n: v for n, v in found.items() if inspect.isclass(v) or inspect.isroutine(v)
    }


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_an_example(room):
    parser = doctest.DocTestParser()
    lacking = {
        name
        for name, value in _public(room).items()
        if not parser.get_examples(inspect.getdoc(value) or "")
    }
    assert not lacking


@pytest.mark.parametrize("room", ROOMS[1:])
def test_every_room_has_a_page_with_all_its_names(room):
    page = (ROOT / "docs" / "api" / f"{room.split('.')[1]}.md").read_text()
    assert f"::: {room}\n" in page
    for name, value in _public(room).items():
        # The room's page leaves out what a module of the room has the name of.
        same = (ROOT / room.replace(".", "/") / f"{name}.py").exists()
        assert not same or f"::: {value.__module__}.{name}\n" in page


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == dilax.__version__ == citation["version"]
    assert citation["references"][0]["year"] == 2016
