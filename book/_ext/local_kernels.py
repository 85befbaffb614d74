"""Kernels talk to what executes a page through sockets in a folder of this user alone, and not over TCP.

nbclient takes no configuration, but the kernel manager that jupyter_client offers. `book/execute.py` changes that one,
and so does Sphinx, which executes what failed there.
"""

import tempfile
import uuid
from pathlib import Path
from typing import Any

import jupyter_client
from traitlets import default


class LocalKernelManager(jupyter_client.AsyncKernelManager):
    """A manager of kernels that have no port."""

    folder = tempfile.TemporaryDirectory(prefix="lrkd-")  # short: a socket has at most 107 characters

    @default("transport")
    def _no_port(self) -> str:
        return "ipc"

    @default("ip")
    def _own_sockets(self) -> str:
        return str(Path(self.folder.name, uuid.uuid4().hex[:8]))


def local() -> None:
    """From now on, kernels of this process and of those that it forks have no port."""
    jupyter_client.AsyncKernelManager = LocalKernelManager  # type: ignore[misc]


def setup(app: Any) -> dict[str, bool]:
    local()
    return {"parallel_read_safe": True}
