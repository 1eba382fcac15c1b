"""The notebooks: stored clean, of public names only, and true when executed."""

import ast
import importlib
import re

import notebook_runs as notebooks
import pytest


def _code(name):
    cells = notebooks.stored(name)["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_they_are_stored_without_outputs(name):
    for cell in notebooks.stored(name)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_they_use_public_names_only(name):
    for node in ast.walk(ast.parse("\n".join(_code(name)))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dilax"):
            room = importlib.import_module(node.module)
            assert {alias.name for alias in node.names} <= set(room.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            public = importlib.import_module("dilax").__all__
            assert node.value.id != "dilax" or node.attr in public
            assert node.attr == "__name__" or not node.attr.startswith("_")


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_one_cell_is_tagged_as_parameters(name):
    cells = notebooks.stored(name)["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    [cell] = tagged
    assert "".join(cell["source"]).startswith("SLIM = False")


@pytest.fixture
def executed(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    pytest.importorskip("matplotlib")
    (tmp_path / "here").mkdir()

    def execute(name):
        return notebooks.execute(name, tmp_path / "here", SLIM=True)

    return execute


def _row(tables, name):
    """The numbers of a table's row."""
    [line] = [row for row in tables.splitlines() if row.startswith(f"| {name}")]
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.slow
def test_quickstart(executed):
    done = executed("01_quickstart")
    tables = notebooks.markdown(done)
    front_end, context = _row(tables, "mean of *")  # what only context tells
    assert context > 2 * front_end and context > 60
    assert len(notebooks.pictures(done)) == 6


@pytest.mark.slow
def test_receptive_fields(executed):
    done = executed("02_receptive_fields")
    text = notebooks.printed(done)
    assert "layer by layer: [3, 7, 15]" in text
    assert "[2, 2, 2] never sees 120 of 169 pixels" in text
    assert "[1, 2, 3] never sees 0 of 169 pixels" in text
    assert "| fc1 | 1 | 67 | 15 |" in notebooks.markdown(done)
    assert len(notebooks.pictures(done)) == 4


@pytest.mark.full
@pytest.mark.slow
def test_voc(executed):
    done = executed("03_voc")
    text = notebooks.printed(done)
    assert "nothing left to train: True" in text
    assert "Outcome(written=3, skipped=0, problems=[])" in text
    assert len(_row(notebooks.markdown(done), "**mean IoU**")) == 2
    assert len(notebooks.pictures(done)) == 3


@pytest.mark.full
@pytest.mark.slow
def test_structured_prediction(executed):
    done = executed("04_structured_prediction")
    text = notebooks.printed(done)
    network, refined = map(
        float, re.search(r"network (.*), with .* (.*)", text).groups()
    )
    assert refined > network
    first, last = map(
        float, re.search(r"py: (.*) at first, (.*) at last", text).groups()
    )
    assert last < first
