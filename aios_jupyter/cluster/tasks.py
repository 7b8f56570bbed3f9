"""A client of the cluster's Dask scheduler. A leaf module: it imports distributed."""

from __future__ import annotations

from typing import Any

from distributed import Client
from distributed.security import Security

from ..tls import Bundle


class TaskClient(Client):
    """A client that leaves nothing running where it does not reach its scheduler."""

    def start(self, **facts: Any) -> Any:
        """Connect; by itself (2026.8) it would close and leave the thread of its loop behind."""
        reached = False
        try:
            started = super().start(**facts)
            reached = True
            return started
        finally:
            if not reached:
                self._loop_runner.stop()


def client_of(address: str, own: Bundle, timeout: float) -> TaskClient:
    """A client of the scheduler at `address`, which takes the certificate in `own`.

    Raises
    ------
    OSError
        It is not reached in that time.
    """
    security = Security(
        tls_ca_file=str(own.authority),
        tls_client_cert=str(own.certificate),
        tls_client_key=str(own.key),
        require_encryption=True,
    )
    return TaskClient(address, security=security, set_as_default=False, timeout=timeout)
