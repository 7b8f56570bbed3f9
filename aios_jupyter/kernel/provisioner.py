"""`aios-provisioner`: starts a kernel with devices of its own, after waiting for them in the queue.

A kernelspec names it and says what to ask for:

    "metadata": {"kernel_provisioner": {
        "provisioner_name": "aios-provisioner", "config": {"gpus": 2, "time": "4h"}}}

The devices are leased before the process starts, stay the kernel's when it is restarted, and end
with it: `session/kernels.py` has how, also for kernels and servers that are killed. Where all of
them are on another machine the kernel runs there, and Jupyter talks to ports of its own machine.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, cast

from jupyter_client.multikernelmanager import MultiKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from tornado import web
from traitlets import Float, Int, Unicode, Union

from ..commands.host import waiting_text
from ..errors import AiosError
from ..runs.tunnel import CHANNELS
from ..schema import DeviceKind, Lease, Slot
from ..session.asking import FOREVER, KERNEL_ASKS, request_of
from ..session.kernels import Tenancy
from ..units import parse_duration

ON_GPU = (DeviceKind.GPU, DeviceKind.MIG)


def _count(about: str) -> Any:
    return Union([Int(), Unicode()], allow_none=True, default_value=None, help=about)


def _length(about: str) -> Any:
    return Union([Float(), Unicode()], default_value="", help=about)


class AiosProvisioner(LocalProvisioner):
    """A kernel that holds devices, on this machine or on that of its devices.

    The configuration is that of the kernelspec; it means what the flags of `aios alloc` mean.
    """

    devices = _count("Accelerators, or CPU slots where the cluster has none.")
    gpus = _count("GPUs, and nothing else will do.")
    cpus = _count("CPU slots.")
    gpu_memory = Unicode("", help="Memory of each GPU, like 8GB.")
    gpu_model = Unicode("", help="Part of each GPU's name, like a100.")
    time = _length("The lease ends after this.")
    max_wait = _length("Give up after so long in the queue.")
    queue = Unicode("", help="Whose quota it takes from.")
    idle = _length("Give the devices back after so long without use.")
    batch = Unicode("", help="The batch of notebooks that it is of.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tenancy: Tenancy | None = None
        self._asked = True  # for its start, by somebody
        self._taken = ""
        self._far = False
        self._ran = False
        # Whoever starts the kernel may know when it runs a cell, as a Jupyter server does.
        self._server_kernel: Any = None
        if self.parent is not None and self.parent.has_trait("execution_state"):
            self._server_kernel = self.parent
            self.parent.observe(self._executes, "execution_state")

    @property
    def lease_id(self) -> str:
        """The lease that the kernel holds now, "" for none."""
        lease = self._tenancy.lease if self._tenancy else None
        return lease.id if lease else ""

    @property
    def node(self) -> str:
        """The node that the kernel runs on where that is not this machine, else ""."""
        return str(getattr(self.process, "node", ""))

    # --- called by the kernel manager, in this order

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Before each start: wait for the devices, unless they are held from before a restart."""
        environment = kwargs.get("env") or {}
        self._forget_pending()
        if self._taken and not self._asked:
            # It was ended with its lease, and Jupyter starts again what has died.
            self.log.warning("aios: it starts again without devices: %s", self._taken)
            await self._give_back()
            self._far = False
            prepared = await super().pre_launch(**kwargs)
            prepared["env"]["CUDA_VISIBLE_DEVICES"] = ""
            return prepared
        self._taken = ""
        try:
            lease = await self._leased(str(environment.get("JPY_SESSION_NAME") or ""))
            await self._place(lease)
            prepared = await super().pre_launch(**kwargs)
        except AiosError as error:
            await self._give_back()
            raise (Refused(error) if self._server else error) from None
        except BaseException:
            await self._give_back()
            raise
        prepared["env"].update(visible(lease))
        return prepared

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start the process; the devices are its own from its first moment."""
        try:
            if self._far:
                await self._launch_far(cmd, **kwargs)
                self._asked = False
                return self.connection_info
            info = await super().launch_kernel(cmd, **kwargs)
            self._asked = False
            if self._tenancy is not None and not self._taken:
                assert self.pid is not None
                await self._tenancy.hand_over(self.pid)
        except AiosError as error:
            await self.kill()
            await self._give_back()
            raise (Refused(error) if self._server else error) from None
        except BaseException:
            await self._give_back()
            raise
        return info

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Before an end that somebody asked for."""
        self._asked = True
        await super().shutdown_requested(restart)

    async def kill(self, restart: bool = False) -> None:
        """At an end by force: also when the process is found dead, to be started again."""
        self._asked = self._asked or await self.poll() is None
        await super().kill(restart)

    async def cleanup(self, restart: bool = False) -> None:
        """After each end, perhaps twice: the devices stay when the kernel is to start again."""
        await super().cleanup(restart)
        if not restart:
            await self._give_back()
        elif self._tenancy is not None:
            try:
                await self._tenancy.take_back()
            except AiosError as error:
                # The restart goes on, and takes other devices if these are lost.
                self.log.warning("aios: %s", error)

    # --- the lease

    async def _leased(self, notebook: str) -> Lease:
        tenancy = self._tenancy
        if tenancy is not None and tenancy.held:
            assert tenancy.lease is not None
            return tenancy.lease
        await self._give_back()
        label = Path(notebook).name or self.kernel_spec.display_name
        asks = {name: getattr(self, name) for name in KERNEL_ASKS}
        request = request_of(asks, label, self.batch)
        self._tenancy = Tenancy(
            request,
            wait=parse_duration(self.max_wait) if self.max_wait else FOREVER,
            on_wait=self._waits,
            on_notice=lambda text: self.log.warning("aios: %s", text),
            on_end=self._ended,
            busy=self._busy,
        )
        return await self._tenancy.take()

    # --- on another machine

    async def _place(self, lease: Lease) -> None:
        """Where the kernel is to run: here if one of its devices is here."""
        tenancy, manager = self._tenancy, self.parent
        assert tenancy is not None
        self._far = manager is not None and not here(lease)
        if not self._far or manager is None:
            await tenancy.close_far()
            return
        before = {channel: getattr(manager, f"{channel}_port") for channel in CHANNELS}
        ports = await tenancy.listen(manager.ip, before)
        for channel, port in ports.items():
            setattr(manager, f"{channel}_port", port)
        self.ports_cached = True

    async def _launch_far(self, cmd: list[str], **kwargs: Any) -> None:
        tenancy, manager = self._tenancy, self.parent
        assert tenancy is not None
        assert manager is not None
        file = manager.connection_file
        command = [part.replace(file, "{connection_file}") for part in cmd]
        connection = _read(file)
        folder = str(kwargs.get("cwd") or Path.cwd())
        process = await tenancy.start_far(command, connection, kwargs["env"], folder)
        # It has what is asked of a process here.
        self.process, self.pid, self.pgid = cast("Any", process), process.pid, None
        self.log.info("aios: the kernel runs on node %s", process.node)

    async def _give_back(self) -> None:
        tenancy, self._tenancy = self._tenancy, None
        if tenancy is not None:
            await tenancy.close()

    def _waits(self, row: dict[str, Any]) -> None:
        self.log.info("aios: %s is %s", row["label"], waiting_text("its devices", row))

    def _executes(self, change: Any) -> None:
        # Not its `last_activity`: that of a kernel that only prints its own warning rises, too.
        self._ran = self._ran or change["new"] == "busy"

    def _busy(self) -> bool:
        """Whether a cell runs or has run since the last look.

        papermill's kernel computes as long as it is there, and of a console's nothing is known,
        which does not count as idle.
        """
        ran, self._ran = self._ran, False
        kernel = self._server_kernel
        return ran or kernel is None or kernel.execution_state in {"starting", "busy"}

    def _ended(self, lease: Lease) -> None:
        self._taken = f"lease {lease.id} has ended ({lease.reason})"
        self.log.warning(
            "aios: lease %s of kernel %s has ended: %s", lease.id, self.kernel_id, lease.reason
        )

    @property
    def _server(self) -> MultiKernelManager | None:
        """The kernel manager of the Jupyter server that starts this kernel, if one does."""
        kernels = getattr(self.parent, "parent", None)
        return kernels if isinstance(kernels, MultiKernelManager) else None

    def _forget_pending(self) -> None:
        """A server that stops asks for the end of each kernel that is pending, which it then does
        not find: it would not stop while a kernel waits, nor after one was refused.
        """
        server = self._server
        if server is not None and not server._using_pending_kernels():
            server._pending_kernels.pop(self.kernel_id, None)


class Refused(web.HTTPError):
    """A kernel was refused: front ends show the sentence, whichever route they asked."""

    def __init__(self, error: AiosError) -> None:
        self._sentence = " ".join(str(error).split())
        reason = self._sentence.encode("ascii", "replace").decode()
        super().__init__(503, self._sentence, reason=reason)

    def __str__(self) -> str:
        return self._sentence


def _read(file: str) -> dict[str, Any]:
    return dict(json.loads(Path(file).read_text()))


def here(lease: Lease) -> list[Slot]:
    """The devices of a lease that are on this machine."""
    return [slot for slot in lease.slots if slot.node == socket.gethostname()]


def visible(lease: Lease) -> dict[str, str]:
    """The variables by which a kernel sees its devices on this machine, and no others.

    Devices on other machines are for `%%aios train`, which runs there.
    """
    gpus = [slot.device for slot in here(lease) if slot.kind in ON_GPU]
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "AIOS_LEASE": lease.id,
        "AIOS_DEVICE": "cuda:0" if gpus else "cpu",
    }
