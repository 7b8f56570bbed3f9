"""What a notebook does with its kernel, without a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager


class Notebook:
    """A front end of a kernel."""

    def __init__(self, manager: KernelManager) -> None:
        self._client: BlockingKernelClient = manager.client()
        self._client.start_channels()
        self.ready()

    def ready(self) -> None:
        self._client.wait_for_ready(timeout=60)

    def run(self, code: str) -> str:
        """What a cell printed; it must not fail."""
        printed: list[str] = []

        def output(message: dict[str, Any]) -> None:
            content = message["content"]
            printed.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

        reply = self._client.execute_interactive(code, timeout=60, output_hook=output)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed)

    def send(self, code: str) -> str:
        """Have a cell run, and wait for nothing; gives back which one it is."""
        return str(self._client.execute(code))

    def prints(self, text: str) -> bool:
        """Whether the next thing that is told is that a cell prints this.

        Before, a cell may be said to be busy, and an interrupt not reach it yet.
        """
        message = self._client.get_iopub_msg(timeout=60)
        return text in message["content"].get("text", "")

    def reply(self, sent: str) -> dict[str, Any]:
        """How a cell that was sent has ended."""
        while True:
            message: dict[str, Any] = self._client.get_shell_msg(timeout=60)
            if message["parent_header"].get("msg_id") == sent:
                return message

    def close(self) -> None:
        self._client.stop_channels()


@pytest.fixture
def opened() -> Iterator[Callable[[KernelManager], Notebook]]:
    """Opens notebooks, and closes them."""
    made: list[Notebook] = []

    def open_(manager: KernelManager) -> Notebook:
        made.append(Notebook(manager))
        return made[-1]

    yield open_
    for notebook in made:
        notebook.close()
