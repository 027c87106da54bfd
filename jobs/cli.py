"""The command line: `wristaugment COMMAND ...`. Quick to start; commands import what is heavy.

A command lives in jobs/<name>.py and gives `add_parser(subparsers)` and `run(args) -> exit code`.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from ..models.errors import WeightsError
from ..readers.errors import RemoteError, SourceError
from . import cache, evaluate, inspect, mount, run, simulate, status, train, verify, weights
from .failures import is_disk
from .interrupt import EXIT_CODE, Interrupted
from .mirror import shown
from .output import DISK, INTERNAL, REFUSED, DiskError, JobError

COMMANDS = {
    "run": run,
    "retry": run,
    "inspect": inspect,
    "status": status,
    "verify": verify,
    "evaluate": evaluate,
    "simulate": simulate,
    "mount": mount,
    "cache": cache,
    "train": train,
    "weights": weights,
}
_EPILOG = """\
a first look, and a first run:
  wristaugment inspect /data/droid/1.0.1
  wristaugment run --dataset droid --data-dir /data --out /data/droid-wrist --dry-run
  wristaugment run --dataset droid --data-dir /data --out /data/droid-wrist
  wristaugment verify /data/droid-wrist --source /data

every command has --help with examples, and --json FILE (- = stdout) for programs

exit codes: 0 complete; 1 internal fault; 2 usage, or refused; 3 finished, with records that could
not be made; 4 no space or no permission; 75 interrupted, the same command goes on
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="wristaugment",
        description="Put a synthetic wrist camera into robot datasets that only have third-person "
        "views.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"wristaugment {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in dict.fromkeys(COMMANDS.values()):
        module.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors of the user's are one line on stderr."""
    args = parser().parse_args(argv)
    try:
        return COMMANDS[args.command].run(args)
    except (SourceError, WeightsError) as error:
        return _fail(str(error), REFUSED)
    except JobError as error:
        return _fail(str(error), INTERNAL)
    except DiskError as error:
        return _fail(f"{error}; make room or fix the rights, then run the same command", DISK)
    except RemoteError as error:
        return _fail(str(error), DISK)
    except BrokenPipeError:
        # The reader of a pipe has left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERNAL
    except OSError as error:
        if not is_disk(error):
            return _unexpected()
        where = f"{error.filename}: " if error.filename else ""
        todo = "make room or fix the rights, then run the same command"
        return _fail(f"{where}{error.strerror}; {todo}", DISK)
    except (KeyboardInterrupt, Interrupted):
        return _fail("interrupted; run the same command to go on", EXIT_CODE)
    except Exception:
        return _unexpected()


def _fail(text: str, code: int) -> int:
    print(f"wristaugment: error: {' '.join(shown(text).split())}", file=sys.stderr, flush=True)
    return code


def _unexpected() -> int:
    traceback.print_exc()
    return _fail("this is a fault of wristaugment; please report it with the lines above", INTERNAL)
