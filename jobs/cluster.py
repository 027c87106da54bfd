"""The Ray cluster that a job runs on: one of this machine's own, or one that is up already."""

from __future__ import annotations

import contextlib
import glob
import os
import socket
import sys
import threading
import time

from ..readers.errors import SourceError
from .failures import ATTEMPTS
from .interrupt import check
from .output import INTERNAL, JobError

_ASK, _SILENT = 5.0, 15.0  # seconds between questions, and for the answer
_GONE = (
    f"the Ray cluster has not answered for {_SILENT:g} s: its head is gone; what is done is kept, "
    "run the same command to go on"
)
_LOCAL_STORE = 100 * 2**20  # bytes; names and small results are all that goes through it


def local_gpus() -> int:
    """How many GPUs torch can use on this machine, without loading torch where there are none."""
    if not glob.glob("/dev/nvidia[0-9]*") and not os.path.exists("/dev/dxg"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_here(asked: str) -> str:
    """ "cpu" or "cuda" for a command that works in its own process, from its --device.

    Raises:
        SourceError: a GPU was asked for and there is none.
    """
    if asked != "cpu" and local_gpus():
        return "cuda"
    if asked == "cuda":
        raise SourceError("no GPU is found", key="--device", todo="use --device cpu")
    return "cpu"


class Cluster:
    """A Ray cluster: one of the machine's own, or the one at an address. Use as a context manager.

    Args:
        address: as --address; None starts one on this machine.
        gpus: GPUs of this machine to offer to it (only where address is None).
        least_cpus: offer at least so many CPU slots, so that actors may outnumber the cores.
    """

    def __init__(self, address: str | None = None, *, gpus: int = 0, least_cpus: int = 0):
        # Read when ray is imported: no calls home, and no word on settings of Ray's future.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if address:
            answers(address)
        import ray

        self.ray = ray
        self._answered, self._watching = time.monotonic(), False
        quiet = {"logging_level": "ERROR", "log_to_driver": False}
        if address:
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise _unreachable(address, str(error).strip().splitlines()[0]) from error
        else:
            self._start(gpus, least_cpus, quiet)

    def _start(self, gpus: int, least_cpus: int, quiet: dict) -> None:
        """Start a cluster on this machine; again if it does not come up, as on a busy machine."""
        cores = len(os.sched_getaffinity(0))
        for left in reversed(range(ATTEMPTS)):
            try:
                self.ray.init(
                    address="local",  # whatever RAY_ADDRESS says
                    include_dashboard=False,
                    num_cpus=least_cpus if least_cpus > cores else None,
                    num_gpus=gpus,
                    object_store_memory=_LOCAL_STORE,
                    **quiet,
                )
                return
            except Exception as error:
                self.ray.shutdown()
                check()
                if not left:
                    reason = str(error).strip().splitlines()[0]
                    raise JobError(
                        f"Ray did not start on this machine: {reason}; see its logs in /tmp/ray, "
                        "then run the same command"
                    ) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_) -> None:
        self._watching = False
        self.ray.shutdown()

    def check(self) -> None:
        """Raise JobError if the cluster has not answered for long (see `_watch`)."""
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, daemon=True).start()
        if time.monotonic() - self._answered > _ASK + _SILENT:
            raise JobError(_GONE)

    def _watch(self) -> None:
        """Ask now and then whether the cluster is there, and have the process end if it is not.

        Ray itself would wait for a minute and then end the process without a word of ours; and any
        call to it may wait, so that the main thread may not come to look.
        """
        while self._watching:
            asking = threading.Thread(target=self._ask, daemon=True)
            asking.start()
            asking.join(_SILENT)
            if asking.is_alive():
                asking.join(_SILENT)  # the main thread may raise, and end the job, meanwhile
                if asking.is_alive() and self._watching:
                    print(f"wristaugment: error: {_GONE}", file=sys.stderr, flush=True)
                    os._exit(INTERNAL)
            time.sleep(_ASK)

    def _ask(self) -> None:
        with contextlib.suppress(Exception):
            self.ray.nodes()
            self._answered = time.monotonic()

    def slots(self, device: str, share: float = 1.0) -> int:
        """How many actors the whole cluster has room for: by its GPUs, or its CPUs for "cpu".

        Args:
            share: of a GPU that an actor takes; 0.5 puts two on one, 2 gives each two.
        """
        found = self.ray.cluster_resources()
        if device != "cuda":
            return int(found.get("CPU", 0))
        # Nodes hold whole actors: two halves on two nodes are no place for one.
        gpus = [node["Resources"].get("GPU", 0) for node in self.ray.nodes() if node["Alive"]]
        return sum(int(count / share + 1e-6) for count in gpus)


def answers(address: str) -> None:
    """Raise SourceError if nothing listens at host:port; Ray itself would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> SourceError:
    return SourceError(
        f"cannot reach a Ray cluster at {address}: {reason}",
        key="--address",
        todo="start one with `ray start --head` (where it asks for a token, set "
        "RAY_AUTH_MODE=token), or leave --address out",
    )
