"""The command line on the tiny recipe: what a process of a job runs.

python tests/tiny_job.py --data_dir=FOLDER --workdir=FOLDER [any other flag]
"""

from pathlib import Path

from tiny_run import tiny_config

from dilax.cli import run

if __name__ == "__main__":
    run({"tiny": lambda: tiny_config(Path())}, __doc__)
