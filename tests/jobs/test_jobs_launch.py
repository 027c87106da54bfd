"""The launch files: run where this machine can (SLURM by stand-ins, Ray for real), else read."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "jobs" / "launch"
LIMIT = 240.0  # seconds for anything to happen
NODES = ("n0", "n1", "n2")
# Stand-ins for SLURM's programs. A node is a network namespace with a folder of its own where Ray
# keeps its sockets, or (PREFIX is empty) just this machine.
SRUN = """\
#!{python}
import argparse, os, signal, subprocess, sys

options = argparse.ArgumentParser(allow_abbrev=False)
for name in ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "kill-on-bad-exit"):
    options.add_argument("--" + name, type=int)
options.add_argument("--nodelist", type=lambda text: text.split(","))
options.add_argument("command", nargs=argparse.REMAINDER)
args = options.parse_args()
assert args.nodes == args.ntasks == len(args.nodelist) and args.ntasks_per_node == 1, sys.argv
tasks = []


def hand_on(number, frame):
    for task in tasks:
        task.send_signal(number)


signal.signal(signal.SIGTERM, hand_on)
for node in args.nodelist:
    tasks.append(subprocess.Popen(["on_node", node, *args.command]))
sys.exit(max(task.wait() for task in tasks))
"""
ON_NODE = """\
#!/bin/sh
node=$1
shift
[ -n "$PREFIX" ] || exec "$@"
exec ip netns exec "$PREFIX$node" unshare --mount sh -c \
  'mount --bind "$RAY_TMPDIR-$0" "$RAY_TMPDIR" && exec "$@"' "$node" "$@"
"""
SCONTROL = """\
#!{python}
import os, sys

if sys.argv[1:3] == ["show", "hostnames"]:
    print(*sys.argv[3].split(","), sep="\\n")
else:
    with open(os.environ["SCONTROL_LOG"], "a") as file:
        print(*sys.argv[1:], file=file)
"""

# What an environment's bin/ has, wherever that environment was made.
OURS = {
    "python3": '#!/bin/sh\nexec {python} "$@"\n',
    "ray": "#!{python}\nfrom ray.scripts.scripts import main\nmain()\n",
    "wristaugment": "#!{python}\nfrom wristaugment.jobs import cli\nraise SystemExit(cli.main())\n",
}


@pytest.fixture(scope="module")
def source(lab, tmp_path_factory):
    """24 shards that take a while each, and the tree of an uninterrupted run."""
    source = lab.make_source(tmp_path_factory.mktemp("source"), shards=24, episodes=2)
    out = tmp_path_factory.mktemp("whole") / "out"
    done = lab.without_ray(source.args(out, *SLOW))
    assert done.returncode == 0, done.stderr
    return source, lab.tree(out)


SLOW = ("--wrist-size", "480x640")
OPTIONS = f"--dataset droid --recipe constant {' '.join(SLOW)}"


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder with stand-ins for SLURM's programs, and with ours, for PATH."""
    folder = tmp_path / "bin"
    texts = {"srun": SRUN, "on_node": ON_NODE, "scontrol": SCONTROL, **OURS}
    write_programs(folder, sys.executable, texts)
    return folder


def write_programs(folder: Path, python: str, texts: dict[str, str]) -> None:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text.replace("{python}", str(python)))
        (folder / name).chmod(0o755)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This environment with the programs in `folder` first."""
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **more}


def published(out: Path) -> int:
    return len(list((out / ".wristaugment" / "shards").glob("*.json")))


@contextlib.contextmanager
def started(line: list[str], env: dict[str, str]):
    """A process in a group of its own; yields it, and kills the group whatever happens."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(line, env=env, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process, happened) -> None:
    """Until `happened()`; the process must not end before."""
    until = time.monotonic() + LIMIT
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def processes_of(mark: str) -> list[int]:
    """Processes with `mark` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if mark.encode() in text:
                    found.append(int(entry.name))
    return found


@pytest.fixture
def short_folder():
    """A folder for Ray: its sockets must have short paths. What still runs there is killed."""
    folder = tempfile.mkdtemp(prefix="wa-", dir="/tmp")
    yield Path(folder)
    for process in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Network:
    """Nodes that are namespaces named PREFIX + node, or (PREFIX is empty) this machine alone."""

    prefix: str
    nodes: tuple[str, ...]


@pytest.fixture
def network():
    """A network namespace a node, on one switch, where this machine lets us make them."""
    prefix = f"wa{os.getpid()}-"
    ip = lambda line: subprocess.run(["ip", *line.split()], check=True, capture_output=True)
    try:
        try:
            ip(f"netns add {prefix}switch")
            ip(f"-n {prefix}switch link add br0 type bridge")
            ip(f"-n {prefix}switch link set br0 up")
            for number, node in enumerate(NODES, 1):
                name = prefix + node
                ip(f"netns add {name}")
                ip(f"-n {name} link set lo up")
                ip(f"-n {name} link add eth0 type veth peer name {node} netns {prefix}switch")
                ip(f"-n {prefix}switch link set {node} master br0 up")
                ip(f"-n {name} address add 10.213.0.{number}/24 dev eth0")
                ip(f"-n {name} link set eth0 up")
                ip(f"-n {name} route add default dev eth0")
            subprocess.run(["unshare", "--mount", "true"], check=True, capture_output=True)
            yield Network(prefix, NODES)
        except (OSError, subprocess.CalledProcessError):
            yield Network("", NODES[:2])  # raylets that start at once here want the same sockets
    finally:
        for node in (*NODES, "switch"):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", "netns", "del", prefix + node], capture_output=True)


def test_shell_scripts_are_sound():
    for path in sorted(LAUNCH.glob("*.sbatch")) + sorted(LAUNCH.glob("*.sh")):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if check := shutil.which("shellcheck"):
            done = subprocess.run([check, path], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
        assert path.stat().st_mode & 0o100 or path.suffix == ".sbatch"


def test_the_slurm_array_script_makes_the_dataset(lab, small, whole, programs, tmp_path):
    out = tmp_path / "out"
    for task in range(2):
        env = environment(
            programs,
            SLURM_ARRAY_TASK_ID=str(task),
            SLURM_ARRAY_TASK_COUNT="2",
            DATA_DIR=str(small.root),
            OUT=str(out),
            OPTIONS="--dataset droid --recipe constant --num-actors 1",
        )
        script = LAUNCH / "slurm_array.sbatch"
        done = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert lab.tree(out) == whole


def test_a_ray_cluster_over_slurm_nodes_makes_the_same_tree_and_is_queued_again(
    lab, source, programs, network, short_folder, tmp_path
):
    data, tree = source
    out, log = tmp_path / "out", tmp_path / "scontrol"
    log.touch()
    env = environment(
        programs,
        PREFIX=network.prefix,
        SCONTROL_LOG=str(log),
        SLURM_JOB_ID="4711",
        SLURM_JOB_NODELIST=",".join(network.nodes),
        SLURM_CPUS_PER_TASK="1",
        RAY_TMPDIR=str(short_folder / "ray"),
        NODE_PATIENCE="120",
        DATA_DIR=str(data.root),
        OUT=str(out),
        OPTIONS=OPTIONS,
    )
    for name in ("ray", *(f"ray-{node}" for node in network.nodes)):
        (short_folder / name).mkdir()
    line = ["on_node", network.nodes[0], "bash", str(LAUNCH / "slurm_ray.sbatch")]
    with started(line, env) as job:
        wait_for(job, lambda: published(out) > 2)
        job.send_signal(signal.SIGUSR1)  # ahead of the time limit
        job.send_signal(signal.SIGTERM)  # and when it is preempted on top of that
        said, _ = job.communicate(timeout=LIMIT)
    assert job.returncode == 75, said
    assert log.read_text() == "requeue 4711\n"
    assert 2 < published(out) < 24
    assert processes_of(str(short_folder)) == [], "the cluster was not stopped"
    with started(line, env) as job:
        said, _ = job.communicate(timeout=LIMIT)
    assert job.returncode == 0, said
    assert f"{len(network.nodes)} actors" in said  # of one core each: all nodes worked
    assert lab.tree(out) == tree
    assert log.read_text() == "requeue 4711\n"
    assert processes_of(str(short_folder)) == [], "the cluster was not stopped"
