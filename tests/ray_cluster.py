"""A real Ray cluster on this machine: several raylets, each a process with workers of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

ray = pytest.importorskip("ray")  # with attribench[ray] alone

#: Of a node: enough for what these tests send.
OBJECT_STORE = 80 * 2**20


@contextmanager
def cluster(nodes: int = 3, **node_options: Any) -> Iterator[Any]:
    """Nodes of one CPU each; the first is the head."""
    # Sockets lie there, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    # Ray's workers give way to everything else: on a busy machine they would take minutes to import torch.
    ours = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, **node_options}
    found = Cluster()
    try:
        add_node(found, include_dashboard=False, **options)
        for _ in range(1, nodes):
            add_node(found, **options)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def add_node(found: Any, **options: Any) -> Any:
    """A node; on a busy machine one may take longer to start than Ray waits."""
    for attempt in range(3):
        try:
            return found.add_node(**options)
        except Exception:
            if attempt == 2:
                raise
            time.sleep(5)
    return None
