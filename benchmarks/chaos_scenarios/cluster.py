"""A Ray cluster of two nodes on this machine, one of which is taken away on request.

    python -P cluster.py CPUS_OF_THE_HEAD CPUS_OF_THE_OTHER

Prints {"address": ..., "other": [ids of the other node's processes]} as one line of JSON once both
nodes are up. A line "remove" on stdin takes the other node away with kill -9, and is answered with
"removed". It ends when stdin does.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

_STORE = 80 * 2**20


def main() -> None:
    """Serve the cluster until stdin ends."""
    head, other = map(int, sys.argv[1:])
    settings = {"object_store_memory": _STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, **settings})
    node = cluster.add_node(num_cpus=other, object_store_memory=_STORE)
    pids = [info.process.pid for infos in node.all_processes.values() for info in infos]
    print(json.dumps({"address": cluster.address, "other": pids}), flush=True)
    for line in sys.stdin:
        if line.strip() == "remove":
            cluster.remove_node(node, allow_graceful=False)
            print("removed", flush=True)


if __name__ == "__main__":
    main()
