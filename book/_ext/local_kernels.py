"""Kernels of a build: they have no port, and are forked from a process that has imported what pages import.

nbclient takes no configuration, but the kernel manager that jupyter_client offers. `book/execute.py` changes that one,
and so does Sphinx, which executes what failed there.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
import uuid
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jupyter_client
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from traitlets import default

# What takes most of the four seconds that a page's imports would take.
IMPORTED = ["ipykernel.kernelapp", "matplotlib.pyplot", "seaborn", "lrkd.study.runner", "lrkd.study.grids"]


class LocalKernelManager(jupyter_client.AsyncKernelManager):
    """A manager of kernels that have no port: they talk through sockets in a folder of this user alone."""

    folder = tempfile.TemporaryDirectory(prefix="lrkd-")  # short: a socket has at most 107 characters

    @default("transport")
    def _no_port(self) -> str:
        return "ipc"

    @default("ip")
    def _own_sockets(self) -> str:
        return str(Path(self.folder.name, uuid.uuid4().hex[:8]))


def _serve(command: list[str], env: dict[str, str], cwd: str) -> None:
    """Be the kernel that `command`, of `python -m ipykernel_launcher`, would start."""
    os.setsid()  # a signal to the kernel's group reaches what it started, and a terminal's does not reach the kernel
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv, sys.path[0] = command[command.index("-m") + 1 :], ""
    from ipykernel.kernelapp import launch_new_instance

    threading.Thread(target=_end_with_parent, daemon=True).start()
    launch_new_instance(parent_handle=os.getppid())


def _end_with_parent() -> None:
    """End the kernel where who asked for it is killed: its parent, the server of forks, would stay."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Process:
    """A forked process that has what jupyter_client expects of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, *told: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # ipykernel would be too late
        context.set_forkserver_preload(IMPORTED)
        self.own = context.Process(target=_serve, args=told)
        self.own.start()
        self.pid, self.kill, self.terminate = self.own.pid, self.own.kill, self.own.terminate

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def poll(self) -> int | None:
        return self.own.exitcode

    def wait(self) -> int | None:
        self.own.join()
        return self.own.exitcode


class ForkedProvisioner(LocalProvisioner):
    """Starts a kernel by a fork."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        self.process = _Process(cmd, dict(kwargs.get("env") or os.environ), str(kwargs.get("cwd") or Path.cwd()))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def local() -> None:
    """From now on, kernels of this process and of those that it forks have no port; on Linux they are forks."""
    jupyter_client.AsyncKernelManager = LocalKernelManager  # type: ignore[misc]
    if sys.platform == "linux":  # elsewhere what is imported does not outlive a fork
        factory = KernelProvisionerFactory.instance()
        own = f"{__name__}:{ForkedProvisioner.__name__}"
        factory.provisioners["forked"] = EntryPoint("forked", own, factory.GROUP_NAME)
        factory.default_provisioner_name = "forked"


def setup(app: Any) -> dict[str, bool]:
    local()
    return {"parallel_read_safe": True}
