"""The launch files: run where this machine can (SLURM by stand-ins, Ray for real), else read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from wristaugment.jobs import cli

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


def processes_of(mark: str, *files: str) -> list[int]:
    """Processes with `mark` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                parts = [(entry / file).read_bytes() for file in files or ("cmdline", "environ")]
                if mark.encode() in b"".join(parts):
                    found.append(int(entry.name))
    return found


def has_pending(process: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that is held up."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("ShdPnd:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


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


def rayjob_python() -> Path:
    """The interpreter of the environment that has ray[default]."""
    given = os.environ.get("WRISTAUGMENT_PEER_RAYJOB")
    python = Path(given or LAUNCH.parents[1] / ".venv-rayjob" / "bin" / "python")
    if not python.exists():
        pytest.skip(f"{python} is not there (make test sets it up)")
    return python


@pytest.fixture
def ray_head(short_folder, tmp_path):
    """The environment of a user of a cluster that is up, with its dashboard."""
    write_programs(tmp_path / "bin", rayjob_python(), OURS)
    port = free_ports(2)
    env = environment(
        tmp_path / "bin",
        RAY_ADDRESS=f"http://127.0.0.1:{port[1]}",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN="0123456789abcdef" * 2,
        RAY_TMPDIR=str(short_folder),
    )
    line = ["ray", "start", "--head", f"--port={port[0]}", f"--dashboard-port={port[1]}"]
    line += ["--num-cpus=2", "--disable-usage-stats", f"--temp-dir={short_folder}", "--block"]
    with started(line, env) as head:
        wait_for(head, lambda: answers(port[1]))
        yield env
        head.terminate()
        head.communicate(timeout=LIMIT)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def test_submitted_jobs_hand_on_their_exit_codes_and_stop_when_told(
    lab, small, whole, source, ray_head, tmp_path
):
    line = ["bash", str(LAUNCH / "ray_job.sh")]
    env = ray_head | {"CPUS": "0", "OPTIONS": f"{OPTIONS} --num-actors 1"}
    stopped = env | {"DATA_DIR": str(source[0].root), "OUT": str(tmp_path / "stopped")}
    refused = env | {"DATA_DIR": str(tmp_path / "nothing"), "OUT": str(tmp_path / "refused")}
    done = env | {"DATA_DIR": str(small.root), "OUT": str(tmp_path / "done")}
    done["OPTIONS"] = "--dataset droid --recipe constant --num-actors 1"
    with (
        started(line, stopped) as job,
        started(line, refused) as other,
        started(line, done) as last,
    ):
        wait_for(job, lambda: published(tmp_path / "stopped") > 2)
        # It takes Ray a while to pass on what it is told; the job must not be done before.
        words = ["/wristaugment", "run", "--address", "auto", "--data-dir", stopped["DATA_DIR"]]
        [driver] = processes_of("\0".join(words), "cmdline")
        os.kill(driver, signal.SIGSTOP)
        job.send_signal(signal.SIGTERM)
        wait_for(job, lambda: has_pending(driver, signal.SIGTERM))
        os.kill(driver, signal.SIGCONT)
        said = [process.communicate(timeout=LIMIT)[0] for process in (job, other, last)]
    assert job.returncode == 75, said[0]
    assert "go on: wristaugment run" in said[0]  # it was given the time to stop
    assert 2 < published(tmp_path / "stopped") < 24
    assert other.returncode == 2 and "nothing" in said[1]
    assert last.returncode == 0, said[2]
    assert lab.tree(tmp_path / "done") == whole


# What a program writes down instead of doing it, and the exit code that it then has.
NOTES = """\
#!{python}
import json, os, sys

with open(os.environ["NOTES"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
sys.exit(int(os.environ.get("CODE", 0)))
"""


@pytest.fixture
def noted(tmp_path):
    """Run a shell script whose `wristaugment` only notes its arguments; returns (code, them)."""
    write_programs(tmp_path / "bin", sys.executable, {"wristaugment": NOTES})
    templates = tmp_path / "home" / "sky_templates" / "ray"
    templates.parent.mkdir(parents=True)
    write_programs(templates, sys.executable, {"start_cluster": NOTES, "stop_cluster": NOTES})

    def run(shell: str, script: str, code: int = 0, **more: str) -> tuple[int, list[list[str]]]:
        notes = tmp_path / "notes"
        notes.write_text("")
        env = environment(tmp_path / "bin", HOME=str(tmp_path / "home"), NOTES=str(notes), **more)
        # The job's exit code; the others' is 0.
        script = f'wristaugment() {{ CODE={code} command wristaugment "$@"; }}\n{script}'
        done = subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True)
        assert not done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in notes.read_text().splitlines()]

    return run


def checked(value, form, where: str = "") -> None:
    """Assert that a value has the form's keys and types: a name with "?" need not be there."""
    if isinstance(form, dict):
        assert isinstance(value, dict), where
        names = {name.rstrip("?"): part for name, part in form.items()}
        must = {name for name in form if not name.endswith("?")}
        assert must <= value.keys() <= names.keys(), (where, sorted(value))
        for name, item in value.items():
            checked(item, names[name], f"{where}/{name}")
    elif isinstance(form, list):
        assert isinstance(value, list) and value, where
        for item in value:
            checked(item, form[0], where)
    else:
        assert type(value) is form, (where, value)


# Fields of ray.io/v1 (ray-operator/apis/ray/v1) and of Kubernetes' pods, as far as they are used.
RESOURCES = {"cpu": str, "memory": str, "nvidia.com/gpu?": str}
POD = {
    "spec": {
        "terminationGracePeriodSeconds": int,
        "nodeSelector?": {"cloud.google.com/gke-spot": str},
        "tolerations?": [{"key": str, "operator": str, "value?": str, "effect": str}],
        "containers": [
            {
                "name": str,
                "image": str,
                "ports?": [{"containerPort": int, "name": str}],
                "resources": {"requests": RESOURCES, "limits": RESOURCES},
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}],
    }
}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "submissionMode": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "headGroupSpec": {
                # Values of rayStartParams are strings, numbers too.
                "rayStartParams": {
                    "dashboard-host": str,
                    "num-cpus": str,
                    "object-store-memory": str,
                },
                "template": POD,
            },
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": {"object-store-memory": str},
                    "template": POD,
                }
            ],
        },
    },
}


def test_the_kuberay_job_is_well_formed_and_its_command_is_ours(noted):
    job = yaml.safe_load((LAUNCH / "kuberay_rayjob.yaml").read_text())
    checked(job, RAY_JOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    assert spec["shutdownAfterJobFinishes"] and spec["backoffLimit"] > 0
    pins = (LAUNCH.parents[1] / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins
    [worker] = cluster["workerGroupSpecs"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], worker["template"]["spec"]]
    for pod in pods:
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pods[0]["volumes"] == pods[1]["volumes"]
    assert int(pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == 1
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    wait = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert type(wait) is str and int(wait) > 30
    mount = pods[0]["containers"][0]["volumeMounts"][0]["mountPath"]
    for code, told in ((0, 0), (3, 0), (75, 1), (1, 1)):
        found, [line] = noted("sh", spec["entrypoint"], code)
        assert found == told
        args = cli.parser().parse_args(line)
        assert args.command == "run" and args.address == "auto"
        for path in (args.data_dir, args.out):
            assert Path(path).is_relative_to(mount)


# Fields of SkyPilot's task YAML (docs: reference/yaml-spec), as far as they are used.
SKY_TASK = {
    "name": str,
    "num_nodes": int,
    "resources": {
        "accelerators": str,
        "cpus": str,
        "memory": str,
        "disk_size": int,
        "use_spot": bool,
        "job_recovery": {
            "strategy": str,
            "max_restarts_on_errors": int,
            "recover_on_exit_codes": [int],
        },
    },
    "envs": {"DATA_DIR": str, "OUT": str, "OPTIONS": str, "WEIGHTS_BUCKET": str},
    "file_mounts": {"/weights": {"source": str, "mode": str}},
    "setup": str,
    "run": str,
}


def test_the_skypilot_task_is_well_formed_and_its_command_is_ours(noted):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    checked(task, SKY_TASK)
    assert task["num_nodes"] > 1 and task["resources"]["use_spot"]
    recovery = task["resources"]["job_recovery"]
    assert recovery["strategy"] in ("FAILOVER", "EAGER_NEXT_REGION")
    assert task["file_mounts"]["/weights"]["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
    env = task["envs"] | {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    assert noted("bash", task["run"], **env, SKYPILOT_NODE_RANK="1") == (0, [[]])  # it joins
    for code, told in ((0, 0), (3, 0), (75, 75), (4, 4)):
        found, [_, line, _] = noted("bash", task["run"], code, **env, SKYPILOT_NODE_RANK="0")
        assert found == told
        args = cli.parser().parse_args(line)
        assert args.command == "run" and args.address == "10.0.0.1:6379"
        assert (args.data_dir, args.out) == (env["DATA_DIR"], env["OUT"])
    assert recovery["recover_on_exit_codes"] == [75]
