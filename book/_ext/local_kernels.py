"""Kernels talk to what executes a page through sockets in a folder of this user alone, and not over TCP.

nbclient takes no configuration, so the default of its kernel managers is changed, by `book/execute.py` and by Sphinx,
which executes what failed there.
"""

import os
import tempfile
from typing import Any

from jupyter_client.manager import KernelManager


def local() -> None:
    """From now on, kernels of this process and of those that it forks have no port."""
    KernelManager._transport_default = lambda self: "ipc"  # type: ignore[attr-defined]
    # A socket's whole path has at most 107 characters.
    os.environ.setdefault("JUPYTER_RUNTIME_DIR", tempfile.mkdtemp(prefix="lrkd-"))


def setup(app: Any) -> dict[str, bool]:
    local()
    return {"parallel_read_safe": True}
