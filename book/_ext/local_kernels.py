"""Kernels talk to what executes a page through sockets in a folder of this user alone, and not over TCP.

nbclient takes no configuration, but the kernel manager that jupyter_client offers. `book/execute.py` changes that one,
and so does Sphinx, which executes what failed there.
"""

import os
import tempfile
from typing import Any

import jupyter_client
from traitlets import default


class LocalKernelManager(jupyter_client.AsyncKernelManager):
    """A manager of kernels that have no port."""

    @default("transport")
    def _no_port(self) -> str:
        return "ipc"


def local() -> None:
    """From now on, kernels of this process and of those that it forks have no port."""
    jupyter_client.AsyncKernelManager = LocalKernelManager  # type: ignore[misc]
    # A socket's whole path has at most 107 characters.
    os.environ.setdefault("JUPYTER_RUNTIME_DIR", tempfile.mkdtemp(prefix="lrkd-"))


def setup(app: Any) -> dict[str, bool]:
    local()
    return {"parallel_read_safe": True}
