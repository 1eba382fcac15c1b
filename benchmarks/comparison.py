"""Show comparisons: a Markdown table, a plot, and the name of the machine."""

import importlib.metadata
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import jax
from tabulate import tabulate

_CPUINFO = Path("/proc/cpuinfo")  # of Linux


def table(results: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    rows = []
    for result in results:
        sides = list(result["seconds"])
        row = [result["title"], f"{result['width']:g}"]
        row += [result["batch"], result["dtype"]]
        row += [_spread(result["seconds"][side]) for side in sides]
        row += [f"{result['ratios'][side]:.2f}" for side in sides[1:]]
        memory = result.get("memory", {})
        row += [f"{memory[s] / 1e9:.2f}" if s in memory else "" for s in sides]
        row += [f"{max(result['apart'].values(), default=0):.0e}"]
        rows.append(row)
    names = ["dilax", *(f"PyTorch {s}" for s in list(results[0]["seconds"])[1:])]
    headers = ["", "width", "batch", "type", *(f"{n}, s" for n in names)]
    headers += [f"dilax / {n}" for n in names[1:]]
    headers += [*(f"{n}, GB" for n in names), "apart"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def _spread(seconds: list[float]) -> str:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle:.3g} ({low:.3g} – {high:.3g})"


def plot(results: list[dict[str, Any]], path: str) -> None:
    """Plot the time that dilax takes, relative to PyTorch."""
    from matplotlib import pyplot

    sides = list(dict.fromkeys(side for r in results for side in r["ratios"]))
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.6 * len(results)))
    for i, side in enumerate(sides):
        places = [n + (i + 0.5) / len(sides) for n in range(len(results))]
        lengths = [result["ratios"].get(side, 0) for result in results]
        bars = axes.barh(places, lengths, 0.8 / len(sides), label=f"PyTorch {side}")
        axes.bar_label(bars, fmt="%.2f", padding=3)
    names = [f"{r['title']}, width {r['width']:g}, {r['dtype']}" for r in results]
    axes.set_yticks([n + 0.5 for n in range(len(results))], names)
    axes.invert_yaxis()
    axes.margins(x=0.1)  # for the labels
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time of dilax, in times of PyTorch")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", dpi=120)


def machine() -> str:
    """Return the name of the machine, for the table."""
    names = [line.split(":")[1] for line in _cpu_lines() if "model name" in line]
    cpu = names[0].strip() if names else platform.processor()
    gpu = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    return (
        f"{cpu}, {os.cpu_count()} cores{''.join(', ' + name for name in gpu)}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
        f"{_torch_version()}"
    )


def _torch_version() -> str:
    try:
        return f", torch {importlib.metadata.version('torch')}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_lines() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
