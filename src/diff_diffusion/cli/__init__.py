"""The command line. Nothing here imports torch before a command runs, so that `--help` is quick."""

from __future__ import annotations

import os
import sys

EXIT_CODES = """Exit codes: 0 done · 1 a bug, please report it · 2 a wrong argument or setting · 3 data that cannot be
used · 4 a model folder is missing or damaged, or could not be written · 5 training could not go on · 6 an optional
package is missing · 7 `verify` measured a miss · 130 interrupted."""


def main() -> None:
    """Runs a command. An error that the user can mend is one message; --debug shows where it came from."""
    # OpenMP threads that wait for each other spin for long by default. Where another program holds a core that is many
    # times slower than going to sleep sooner; where none does, sleeping sooner costs little. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    from diff_diffusion import errors
    from diff_diffusion.cli.app import app

    codes = [
        (errors.ConfigError, 2),
        (errors.IncompatibleError, 2),
        (errors.DataError, 3),
        (errors.CheckpointError, 4),
        (errors.TrainingError, 5),
        (errors.MissingPackageError, 6),
        (errors.DiffusionError, 1),
    ]
    try:
        app(prog_name="diff-diffusion")
    except errors.DiffusionError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(next(code for kind, code in codes if isinstance(error, kind)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed the pipe: nothing is wrong
        sys.stderr.close()
        sys.exit(0)
