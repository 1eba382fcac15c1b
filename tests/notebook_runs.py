"""A notebook, executed from a clean kernel on slim settings in a folder of its own."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def stored(name: str) -> dict[str, Any]:
    """The notebook as it lies in the repository."""
    return json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))


def execute(name: str, folder: Path, **parameters: Any) -> Any:
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


def printed(notebook: Any) -> str:
    """All that its cells wrote to standard output."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "".join(out["text"] for out in outputs if out.get("name") == "stdout")


def markdown(notebook: Any) -> str:
    """All tables that its cells gave."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "\n".join(out.get("data", {}).get("text/markdown", "") for out in outputs)


def pictures(notebook: Any) -> list[str]:
    """The PNGs that its cells show, in base64."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    found = [out.get("data", {}).get("image/png") for out in outputs]
    return [picture for picture in found if picture]
