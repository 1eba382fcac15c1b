"""The `dilax` command, also started by `python -m dilax`.

The code of a command is imported only when the command runs.
"""

import importlib
import sys

from dilax.runtime.files import shipped

MODES = {
    "train": "train an experiment's recipe, or resume it: dilax train voc --help",
    "eval": "evaluate a trained run: mean IoU, IoU per class",
    "predict": "predict images, folders, or videos with a trained run",
    "export": "write a network that runs without dilax (StableHLO, ONNX)",
    "submit": "write predictions for the test servers of Pascal VOC and Cityscapes",
    "report": "write the page of a run",
    "compare": "write one page that shows several runs side by side",
    "import-weights": "turn a released network's weights into a run",
}
TOOLS = {
    "data": "prepare, list, and show data sets",
    "receptive-field": "describe what a stack of layers, a network, or a run sees",
    "doctor": "show what is installed, and test whether it works",
}
USAGE = "usage: dilax COMMAND [flags]; dilax COMMAND --help explains its flags"


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h", "help"):
        rows = [f"  {command:16}{text}" for command, text in (MODES | TOOLS).items()]
        print("\n".join([USAGE, "", *rows, "", experiments()]))
        return 0
    if name == "train":
        return _train(rest)
    if name in MODES:
        from dilax.cli.command import run_mode

        run_mode(name, rest)
        return 0
    if name in TOOLS:
        module = importlib.import_module(f"dilax.cli.{name.replace('-', '_')}")
        return module.main(rest) or 0
    known = ", ".join(MODES | TOOLS)
    print(f"error: no command {name!r}; choose from {known}", file=sys.stderr)
    return 2


def experiments() -> str:
    """List the experiments that `dilax train` takes, with their docstrings' titles."""
    rows = ["experiments to train:"]
    for path in sorted(shipped("experiments").glob("[a-z]*.py")):
        text = path.read_text("utf-8")
        if "dilax.cli import run" in text:
            title = text.partition("\n")[0].strip('"')
            rows.append(f"  {path.stem:16}{title}")
    return "\n".join(rows)


def _train(argv: list[str]) -> int:
    """Run an experiment's script, as `python experiments/NAME.py` does."""
    import importlib.machinery
    import importlib.util
    import runpy

    folder = shipped("experiments")
    name, *rest = argv or ["--help"]
    if name in ("--help", "-h"):
        print(f"usage: dilax train EXPERIMENT [flags]\n\n{experiments()}")
        return 0
    if not (folder / f"{name}.py").is_file():
        print(f"error: no experiment {name!r}\n{experiments()}", file=sys.stderr)
        return 2
    # Experiments import each other as `experiments.NAME`, wherever they are installed.
    spec = importlib.machinery.ModuleSpec("experiments", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules["experiments"] = importlib.util.module_from_spec(spec)
    sys.argv = [f"dilax train {name}", *rest]
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
