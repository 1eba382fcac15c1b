"""The notebooks: stored clean, of public names only, and true when executed."""

import ast
import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def _stored(name: str) -> dict[str, Any]:
    """The notebook as it lies in the repository."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def _execute(name: str, folder: Path, **parameters: Any) -> Any:
    """The notebook with its outputs; the cell tagged `parameters` is set first.

    Args:
        name: of the file, without its suffix.
        folder: where the kernel starts, and what its relative paths begin at.
        **parameters: variables of that cell, set after it.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    lines = (f"{key} = {value!r}" for key, value in parameters.items())
    cell.source = "\n".join([cell.source, *lines])
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=300, resources=resources)
    return client.execute()


def _printed(notebook: Any) -> str:
    """All that its cells wrote to standard output."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out["text"] for out in outputs if out.get("name") == "stdout")


def _markdown(notebook: Any) -> str:
    """All tables that its cells gave."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "\n".join(out.get("data", {}).get("text/markdown", "") for out in outputs)


def _pictures(notebook: Any) -> list[str]:
    """The PNGs that its cells show, in base64."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    found = [out.get("data", {}).get("image/png") for out in outputs]
    return [picture for picture in found if picture]


def _code(name):
    cells = _stored(name)["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_stored_without_outputs(name):
    for cell in _stored(name)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("name", NAMES)
def test_they_use_public_names_only(name):
    for node in ast.walk(ast.parse("\n".join(_code(name)))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dilax"):
            room = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(room.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = importlib.import_module("dilax").__all__
            assert node.value.id != "dilax" or node.attr in public
            assert node.attr == "__name__" or not node.attr.startswith("_")


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_is_tagged_as_parameters(name):
    cells = _stored(name)["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    [cell] = tagged
    assert "".join(cell["source"]).startswith("SLIM = False")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Executes notebooks side by side: the second finds the run of the first."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    pytest.importorskip("matplotlib")
    here = tmp_path_factory.mktemp("notebooks") / "here"
    here.mkdir()
    return functools.partial(_execute, folder=here, SLIM=True)


def _row(tables, name):
    """The numbers of a table's row."""
    [line] = [row for row in tables.splitlines() if row.startswith(f"| {name}")]
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.slow
def test_quickstart(executed):
    done = executed("01_quickstart")
    tables = _markdown(done)
    front_end, context = _row(tables, "mean of *")  # what only context tells
    assert context > 2 * front_end and context > 60
    assert len(_pictures(done)) == 6


@pytest.mark.slow
def test_receptive_fields(executed):
    done = executed("02_receptive_fields")
    text = _printed(done)
    assert "layer by layer: [3, 7, 15]" in text
    assert "[2, 2, 2] never sees 120 of 169 pixels" in text
    assert "[1, 2, 3] never sees 0 of 169 pixels" in text
    assert "| fc1 | 1 | 67 | 15 |" in _markdown(done)
    assert len(_pictures(done)) == 4


@pytest.mark.full
@pytest.mark.slow
def test_voc(executed):
    done = executed("03_voc")
    text = _printed(done)
    assert "nothing left to train: True" in text
    assert "Outcome(written=3, skipped=0, problems=[])" in text
    assert len(_row(_markdown(done), "**mean IoU**")) == 2
    assert len(_pictures(done)) == 3


@pytest.mark.full
@pytest.mark.slow
def test_structured_prediction(executed):
    done = executed("04_structured_prediction")
    text = _printed(done)
    network, refined = map(
        float, re.search(r"network (.*), with .* (.*)", text).groups()
    )
    assert refined > network
    first, last = map(
        float, re.search(r"py: (.*) at first, (.*) at last", text).groups()
    )
    assert last < first
