"""Write all public names into index.md, with signatures and first lines.

    python docs/api/reference.py

A test compares the page with the code.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

import dilax

PAGE = Path(__file__).parent / "index.md"
START = "<!-- From here on: python docs/api/reference.py -->\n"
ROOMS = (
    *("ops", "models", "profiling", "data", "evaluation", "crf", "weights"),
    *("inference", "training", "report", "cli", "runtime"),
)
_LONGEST = 24  # characters of a default; tables of layers are longer


def page() -> str:
    """The page as it should be: its introduction, and every room's names."""
    rooms = "\n".join(map(_room, ROOMS))
    return PAGE.read_text("utf-8").partition(START)[0] + START + "\n" + rooms


def _room(name: str) -> str:
    module = importlib.import_module(f"dilax.{name}")
    lines = [f"## dilax.{name}\n", _first_line(module) + "\n"]
    others = []  # constants, and names of types
    for public in sorted(module.__all__, key=str.lower):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            top = "dilax." if public in dilax.__all__ else ""
            lines += _entries(top + public, value)
        else:
            others.append(f"`{public}`")
    if others:
        lines.append(f"- Constants and types: {', '.join(others)}")
    return "\n".join(lines) + "\n"


def _entries(name: str, value: Any, indent: str = "") -> list[str]:
    """A line for a function or a class, and one for each method of the class."""
    lines = [f"{indent}- `{name}{_signature(value)}`: {_first_line(value)}"]
    for method, member in sorted(vars(value).items() if inspect.isclass(value) else []):
        function = getattr(member, "__func__", member)
        ours = str(getattr(function, "__module__", "")).startswith("dilax")
        if inspect.isfunction(function) and ours and method[0] != "_":
            lines += _entries(f".{method}", function, indent + "    ")
    return lines


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n")[0]


def _signature(value: Any) -> str:
    """Names and defaults; annotations are in the code."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        return ""
    shown = []
    for name, parameter in inspect.signature(value).parameters.items():
        if name == "self" or (name in ("parent", "name") and hasattr(value, "apply")):
            continue
        default = parameter.default
        if default is not parameter.empty:
            text = getattr(default, "__name__", repr(default))
            long = len(text) > _LONGEST or "<" in text
            parameter = parameter.replace(default=_Text("…" if long else text))
        shown.append(parameter.replace(annotation=parameter.empty))
    return str(inspect.Signature(shown))


class _Text(str):
    __repr__ = str.__str__


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
