"""The magics in real kernels, seen as a front end sees them: by messages."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from aios_jupyter import kernel

TESTS = Path(__file__).resolve().parents[1]
WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """
import time
import aios_jupyter.session
from fake_session import FakeHandle, FakeSession, make_lease
from aios_jupyter.errors import RunError
from aios_jupyter.runs.handle import RunResult
session = FakeSession()
aios_jupyter.session.connect = lambda **_: session
import aios_jupyter.notebook.display
aios_jupyter.notebook.display.cluster_exists = lambda: True
%load_ext aios_jupyter
"""


@pytest.fixture(autouse=True)
def _fakes_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def execute(*cells: str, allow_errors: bool = False) -> list[Any]:
    """Run cells as papermill and nbconvert do; the outputs of each but the set-up."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=allow_errors)
    client.execute()
    return [cell.outputs for cell in notebook.cells[1:]]


def test_a_saved_notebook_has_static_cards_alone() -> None:
    alloc, train, release = execute(
        "%aios alloc --devices 2 --time 1h",
        "session.handle = FakeHandle([\n"
        "    {'type': 'log', 'stream': 'stdout', 'text': 'epoch 1\\n'},\n"
        "    {'type': 'metrics', 'values': {'loss': 0.5}},\n"
        "], RunResult('r-1', 'succeeded', 2, 1.0, {}, {}))\n"
        "get_ipython().run_cell_magic('aios', 'train', 'x = 1')",
        "%aios release",
    )
    for outputs in (alloc, train, release):
        (output,) = outputs
        assert output.output_type == "display_data"
        assert set(output.data) == {"text/plain", "text/html"}
    assert "[released]" in alloc[0].data["text/plain"]
    assert "epoch 1" in train[0].data["text/plain"]


def test_a_notebook_for_all_kernels_says_nothing_when_it_loads_what_is_loaded() -> None:
    spec = json.loads((Path(kernel.__file__).parent / "spec" / "kernel.json").read_text())
    cells = [
        nbformat.v4.new_code_cell(c) for c in ("%aios policy --help", "%load_ext aios_jupyter")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    extension = [spec["argv"][-1]]
    NotebookClient(notebook, kernel_name="python3", extra_arguments=extension).execute()
    there, again = (cell.outputs for cell in notebook.cells)
    assert there
    assert again == []


def test_a_failed_verb_ends_a_batch_run_with_its_sentence() -> None:
    with pytest.raises(CellExecutionError) as failed:
        execute("%aios alocc", "never = 1")
    assert failed.value.ename == "UsageError"
    assert "did you mean 'alloc'?" in failed.value.evalue


def test_a_failed_run_shows_the_ranks_traceback_and_none_of_our_frames() -> None:
    (outputs,) = execute(
        "session.run_state = 'failed'\n"
        "session.handle = FakeHandle([], RunError('Run r-1 failed: it raised ValueError', \n"
        '    traceback=\'Traceback (most recent call last):\\n  File "cell-2.py"\\n'
        "ValueError: no', rank=1))\n"
        "get_ipython().run_cell_magic('aios', 'train', 'x = 1')",
        allow_errors=True,
    )
    card, error = outputs
    assert "failed" in card.data["text/plain"]
    assert error.output_type == "error"
    assert error.ename == "RunError"
    text = "\n".join(error.traceback)
    assert text.index("ValueError: no") < text.index("Run r-1 failed")
    assert "aios_jupyter" not in text
    assert "display.py" not in text


class FrontEnd:
    """A kernel, and a client that keeps what it is told."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self.messages: list[dict[str, Any]] = []

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20) -> Any:
        """The first message, of those to come, that is wanted."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            message = self.client.get_iopub_msg(timeout=left)
            self.messages.append(message)
            if wanted(message):
                return message
        raise AssertionError("it did not come")

    def idle(self, request: str) -> None:
        """Wait until a request is done."""
        self.until(
            lambda m: (
                m["msg_type"] == "status"
                and m["parent_header"].get("msg_id") == request
                and m["content"]["execution_state"] == "idle"
            )
        )


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=sys.stderr.fileno() if sys.stderr.isatty() else None)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=30)
    front = FrontEnd(manager, client)
    front.idle(client.execute(SETUP))
    yield front
    client.stop_channels()
    if manager.is_alive():
        manager.shutdown_kernel(now=True)


def display(message: dict[str, Any]) -> dict[str, Any]:
    return dict(message["content"]["data"]) if "data" in message["content"] else {}


def test_stop_is_heard_while_the_cell_blocks(front_end: FrontEnd) -> None:
    client = front_end.client
    client.execute(
        "def endless(handle):\n"
        "    while not handle.stopped:\n"
        "        time.sleep(0.01)\n"
        "session.run_state = 'stopped'\n"
        "session.handle = FakeHandle([endless], RunError('Run r-1 was stopped: by Stop'))\n"
        "get_ipython().run_cell_magic('aios', 'train', 'x = 1')"
    )
    front_end.until(lambda m: WIDGET in display(m))
    opened = [m["content"] for m in front_end.messages if m["msg_type"] == "comm_open"]
    (button,) = [
        content["comm_id"]
        for content in opened
        if content["data"].get("state", {}).get("description") == "Stop"
    ]
    # As JupyterLab does: a subshell of its own carries what is clicked.
    asked = client.session.msg("create_subshell_request")
    client.control_channel.send(asked)
    reply = client.get_control_msg(timeout=30)
    click = client.session.msg(
        "comm_msg",
        {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}},
    )
    click["header"]["subshell_id"] = reply["content"]["subshell_id"]
    client.shell_channel.send(click)
    clicked = time.monotonic()
    error = front_end.until(lambda m: m["msg_type"] == "error")
    assert time.monotonic() - clicked < 20
    assert error["content"]["evalue"] == "Run r-1 was stopped: by Stop"


def test_interrupting_the_kernel_stops_the_run(front_end: FrontEnd) -> None:
    front_end.client.execute(
        "def endless(handle):\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        "session.handle = FakeHandle([endless], RunError('stopped'))\n"
        "get_ipython().run_cell_magic('aios', 'train', 'x = 1')",
        stop_on_error=False,
    )
    front_end.until(lambda m: WIDGET in display(m))
    front_end.manager.interrupt_kernel()
    error = front_end.until(lambda m: m["msg_type"] == "error")
    assert "\n".join(error["content"]["traceback"]) == "KeyboardInterrupt: stopped on request."
    front_end.idle(error["parent_header"]["msg_id"])
    stopped = front_end.client.execute("print(session.handle.stopped)")
    front_end.until(lambda m: m["content"].get("text", "").strip() == "interrupted")
    front_end.idle(stopped)


def test_shutting_the_kernel_down_leaves_static_cards(front_end: FrontEnd) -> None:
    front_end.idle(front_end.client.execute("%aios alloc --devices 1 --time 1h"))
    front_end.client.shutdown()
    update = front_end.until(lambda m: m["msg_type"] == "update_display_data")
    assert set(display(update)) == {"text/plain", "text/html"}
    assert "ended with its kernel" in display(update)["text/plain"]
