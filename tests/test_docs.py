"""The documentation agrees with the code: reference, messages, commands, examples."""

import ast
import doctest
import importlib
import inspect
import operator
import pkgutil
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

import dilax
from dilax.__main__ import MODES, TOOLS
from dilax.cli import overridden
from dilax.cli.options import OPTIONS

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_reference_has_all_public_names():
    reference = runpy.run_path(str(ROOT / "docs" / "api" / "reference.py"))
    text = (ROOT / "docs" / "api" / "index.md").read_text("utf-8")
    assert text == reference["page"](), "run python docs/api/reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_sections_that_are_named_exist(page):
    text = page.read_text("utf-8")
    for name in re.findall(r"`([\w/]+/\w+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "dilax" / name).exists(), name
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target or name.endswith(".png") or not name:
            continue
        assert (page.parent / name).exists(), target
        if anchor:
            other = (page.parent / name).read_text("utf-8").lower()
            assert f"# {anchor.replace('-', ' ')}\n" in other.replace("-", " "), target


def _texts():
    """The fixed parts of every text in the code: an f-string has several."""
    for path in [*ROOT.glob("dilax/**/*.py"), *ROOT.glob("experiments/*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                parts = [
                    getattr(p, "value", 0) for p in getattr(node, "values", [node])
                ]
                yield [part for part in parts if isinstance(part, str)]


def _agreement(message, text):
    """Characters of the parts that the message, which may be cut short, repeats."""
    at = 0
    for part in text:
        found = message.find(part, at)
        if found < 0:
            cut = (n for n in range(len(part), 0, -1) if message.endswith(part[:n]))
            return sum(map(len, text[: text.index(part)])) + next(cut, -999)
        at = found + len(part)
    return sum(map(len, text))


def test_the_messages_that_are_explained_are_those_of_the_code():
    page = (ROOT / "docs" / "faq.md").read_text("utf-8")
    messages = re.findall(r"^> `(.*)`$", page, re.MULTILINE)
    texts = [text for text in _texts() if text]
    best = {m: max(_agreement(m, text) for text in texts) for m in messages}
    assert len(best) > 20
    assert not {message for message, count in best.items() if count < 15}


def _commands():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for words in map(shlex.split, line.partition(" #")[0].split("&&")):
                    if words[:1] == ["dilax"] or "experiments/" in " ".join(words[:2]):
                        yield pytest.param(words, id=f"{page.stem}: {' '.join(words)}")


@pytest.mark.parametrize("words", [*_commands()])
def test_commands_of_the_documentation_exist(words):
    program, command, *rest = words
    flags = [word.lstrip("-").partition("=") for word in rest if word[:2] == "--"]
    if program == "dilax" and command != "train":
        assert command in {*MODES, *TOOLS}
        if command in MODES:
            mode = command.replace("-", "_")
            assert all(mode in OPTIONS[name].modes for name, _, _ in flags)
        return
    name = rest[0] if program == "dilax" else Path(command).stem
    experiment = importlib.import_module(f"experiments.{name}")
    source = Path(experiment.__file__).read_text("utf-8")
    fields = [f"--{'='.join(flag[::2])}" for flag in flags if "." in flag[0]]
    values = {name: value for name, _, value in flags if "." not in name}
    for flag in values:
        assert flag in {"mode", "config", *OPTIONS} or f'{flag}"' in source
    make = getattr(experiment, values.get("config", ""), None)
    if inspect.isfunction(make):
        assert overridden(make(), fields)


def _examples(page):
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_examples_exist(page):
    for node in ast.walk(ast.parse("\n".join(_examples(page)))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            missing = [n.name for n in node.names if not hasattr(module, n.name)]
            assert not missing or importlib.import_module(f"{node.module}.{missing[0]}")
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"dilax(\.\w+)+", name):
            operator.attrgetter(name.removeprefix("dilax."))(dilax)


def test_the_convolution_is_that_of_pytorch(torch):
    [code] = _examples(ROOT / "docs" / "coming_from.md")
    found = {}
    exec(code, found)
    x, weight = (torch.from_numpy(np.array(found[name])) for name in ("x", "weight"))
    expected = torch.nn.functional.conv2d(x, weight, dilation=2)
    ours = np.asarray(found["y"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-4)


# Every public name is documented, with an example that runs.


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
