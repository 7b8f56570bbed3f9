"""One notebook of a batch, in a process of its own: `python -m aios_jupyter.kernel.job ORDER`.

ORDER is a file of JSON that `session/batch.py` has written. How it ended is written beside it, and
SIGTERM ends the notebook's kernel before this process. The batch holds the other end of stdin: when
that closes the batch is gone, or has no more use for the notebook.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import AiosError
from ..recording import records
from ..session.batch import END_GRACE, write_aside


def main(path: Path) -> int:
    """Run it; 0 when the notebook succeeded."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    order = json.loads(path.read_text())
    output = Path(order["output"])
    asked = time.time()
    began: list[float] = []

    def on_start() -> None:
        began.append(time.time())
        write_aside(Path(order["state"]), "running")

    outcome: dict[str, Any] = {"status": "succeeded", "error": ""}
    try:
        papermill.execute_notebook(
            order["notebook"],
            str(output),
            parameters=order["parameters"],
            engine_name="aios",
            kernel_name=order["kernel"] or None,
            cwd=order["cwd"],
            progress_bar=False,
            label=output.name,
            batch=order["batch"],
            on_start=on_start,
            **order["asks"],
        )
    except PapermillExecutionError as error:
        outcome = {"status": "failed", "error": f"{error.ename}: {error.evalue}"}
    except AiosError as error:
        outcome = {"status": "failed", "error": str(error)}
    outputs: list[Any] = []
    if output.exists():
        notebook = nbformat.read(output, as_version=4)  # type: ignore[no-untyped-call]
        outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    now = time.time()
    started = began[0] if began else now
    outcome |= {"started": started, "waited": started - asked, "seconds": now - started}
    outcome["values"] = records(outputs)
    write_aside(Path(order["result"]), json.dumps({**order["job"], **outcome}))
    return 0 if outcome["status"] == "succeeded" else 1


def end_with_batch(grace: float = END_GRACE) -> None:
    """In a thread: end this process, and in any case after so many seconds, when stdin closes."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    # What a signal's handler raises is lost where it interrupts a destructor, for one.
    os._exit(1)


def _end(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=end_with_batch, daemon=True).start()
    sys.exit(main(Path(sys.argv[1])))
