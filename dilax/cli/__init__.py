"""The command line."""

from dilax.cli.command import overridden, run

__all__ = ["overridden", "run"]
