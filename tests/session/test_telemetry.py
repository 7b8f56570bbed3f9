"""What a run shows of itself although its code says nothing of us."""

from __future__ import annotations

import pytest
from clusters import until

from aios_jupyter.commands.feed import Feed
from aios_jupyter.commands.runs import run_table
from aios_jupyter.notebook import html
from aios_jupyter.session import Session

PLAIN = """
import time, torch
from tqdm import tqdm
data = torch.utils.data.TensorDataset(torch.randn(400, 4), torch.randn(400, 1))
loader = torch.utils.data.DataLoader(data, batch_size=8)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
end = time.monotonic() + seconds
for epoch in tqdm(range(100), desc="training", unit="epoch"):
    for x, y in loader:
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if time.monotonic() > end:
        break
"""


def test_plain_code_has_a_rate_a_loss_progress_and_the_use_of_each_rank(session: Session) -> None:
    pytest.importorskip("torch")
    handle = session.start(PLAIN, cell=True, gpus=2, push={"seconds": 6})
    feed = Feed(handle.id, "cell", 2, 0.0)
    seen: dict[str, object] = {}
    for event in handle.events():
        feed.add(event)
        if not seen and set(feed.usage) == {0, 1} and "samples_per_second" in feed.metrics:
            seen = dict(until(lambda: _row(session, handle.id), "the row has the use"))
            shown = feed.summary(0.0)
            assert "busy" in shown
            assert "MiB" in shown
            assert "rank 1: " in html.run_usage(feed)
    handle.wait()
    assert {"steps_per_second", "samples_per_second", "loss"} <= set(feed.metrics)
    assert feed.metrics["samples_per_second"] > feed.metrics["steps_per_second"]
    assert (feed.progress["total"], feed.progress["unit"]) == (100.0, "epoch")
    assert feed.progress["label"] == "training"
    assert isinstance(seen["memory"], int)
    assert "MiB" in run_table([seen], 0.0).text()


def _row(session: Session, run: str) -> dict[str, object] | None:
    row = next(row for row in session.runs() if row["id"] == run)
    return row if row["memory"] and row["utilization"] is not None else None
