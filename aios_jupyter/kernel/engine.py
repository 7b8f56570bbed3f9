"""The engine `aios` of papermill: the notebook's kernel has devices, whatever its kernelspec says.

    AIOS_GPUS=2 papermill --engine aios in.ipynb out.ipynb
    papermill.execute_notebook("in.ipynb", "out.ipynb", engine_name="aios", gpus=2, time="4h")

papermill's command line has no flags for engines, so what to ask for comes from the environment
there, or from the notebook itself: `"aios": {"gpus": 2}` in its metadata. The names are those of
`session.asking.Asks`. Loaded by papermill alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine
from papermill.log import logger
from traitlets import default

from ..errors import UsageError
from ..session.asking import ASKS, COUNTS, request_of
from .specs import PROVISIONER


class LeasingKernelManager(AsyncKernelManager):
    """Starts any kernel with devices; `asks` is for the provisioner."""

    asks: Mapping[str, Any] = {}
    on_start: Callable[[], None] | None = None

    @default("log")
    def _log(self) -> Any:
        return logger  # where papermill says what it does, waiting included

    @property
    def kernel_spec(self) -> Any:
        """The kernelspec, with our provisioner."""
        spec = copy.copy(super().kernel_spec)
        stanza = {"provisioner_name": PROVISIONER, "config": dict(self.asks)}
        if spec is not None and self.asks:
            spec.metadata = {**spec.metadata, "kernel_provisioner": stanza}
        return spec

    async def _async_post_start_kernel(self, **kw: Any) -> None:
        await super()._async_post_start_kernel(**kw)
        if self.on_start is not None:
            self.on_start()


class AiosEngine(NBClientEngine):
    """papermill's own engine, on leased devices."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        """Wait for the devices, run the notebook, and give them back.

        Besides what can be asked for, `label` is what people see in the queue (the notebook's
        name), `batch` the batch that it is of, and `on_start` is called once there is a kernel.

        Raises
        ------
        AllocationError
            Refused, cancelled, or not granted in the time given.
        """
        given = {name: kwargs.pop(name) for name in ASKS if name in kwargs}
        asks = wanted(given, os.environ, nb_man.nb.metadata.get("aios", {}))
        asks["batch"] = kwargs.pop("batch", "")
        source = kwargs.pop("input_path", None) or nb_man.output_path or "notebook"
        label = kwargs.pop("label", "") or Path(str(source)).name
        started = kwargs.pop("on_start", None)
        about = {"asks": asks, "on_start": staticmethod(started) if started else None}
        manager = type("_Manager", (LeasingKernelManager,), about)
        client = PapermillNotebookClient(
            nb_man,
            kernel_manager_class=manager,
            kernel_name=kernel_name,
            log=logger,
            startup_timeout=kwargs.pop("start_timeout", 60),
            timeout=kwargs.pop("execution_timeout", None) or kwargs.pop("timeout", None),
            **kwargs,
        )
        return client.execute(env={**os.environ, "JPY_SESSION_NAME": label})


def wanted(
    given: Mapping[str, Any], environment: Mapping[str, str], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What to ask for: what the caller says, else the environment, else the notebook.

    One device where nobody says how many. Whoever says how many says of what, too: `gpus` of the
    caller takes the place of the notebook's `devices`.

    Raises
    ------
    UsageError
        It makes no sense.
    """
    unknown = sorted(set(metadata) - set(ASKS))
    if unknown:
        raise UsageError(
            f"The notebook's metadata asks for {unknown[0]!r}; what can be asked for is "
            f"{', '.join(ASKS)}."
        )
    variables = {name: environment.get(f"AIOS_{name.upper()}") or None for name in ASKS}
    asks: dict[str, Any] = {}
    for source in (metadata, variables, given):
        said = {name: value for name, value in source.items() if value is not None}
        if set(said) & set(COUNTS):
            asks = {name: value for name, value in asks.items() if name not in COUNTS}
        asks |= said
    if not set(asks) & set(COUNTS):
        asks["devices"] = 1
    request_of(asks)
    return asks
