"""The command line that every experiment shares."""

from dilax.launch.command import overridden, run

__all__ = ["overridden", "run"]
