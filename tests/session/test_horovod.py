"""Horovod code on the ranks of a live cluster, and on two nodes. `make test-horovod` runs it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clusters import free, until
from gangs import Gang

from aios_jupyter.config import settings
from aios_jupyter.errors import RunError
from aios_jupyter.node.ranks import LocalGang
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.runs.spec import RankSpec
from aios_jupyter.schema import DeviceKind
from aios_jupyter.session import Session

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("horovod") is None,
        reason="Horovod is not here: make test-horovod",
    ),
    pytest.mark.timeout(120),
]

# As in Horovod's own examples.
TRAIN = """
import json, os, sys
warm = "horovod.torch" in sys.modules
import torch
import horovod.torch as hvd
hvd.init()
torch.manual_seed(hvd.rank())
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimizer = hvd.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
    named_parameters=model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
truth = torch.linspace(-1, 1, 8)[:, None]
losses = []
for step in range(60):
    x = torch.randn(16, 8)
    loss = ((model(x) - x @ truth) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
summed = hvd.allreduce(torch.tensor([hvd.rank() + 1.0]), op=hvd.Sum).item()
weights = [float(p.detach().double().sum()) for p in model.parameters()]
places = [hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size()]
print("SAID", json.dumps([warm, places, summed, losses[0], sum(losses[-5:]) / 5, weights]))
"""


def logs_of(
    handle: RunHandle, look: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[str]:
    """Each rank's log, once the run has ended; `look` sees every event as it comes."""
    logs = [""] * handle.world_size
    for event in handle.events():
        if event["type"] == "log":
            logs[event["rank"]] += event["text"]
        look(event)
    return logs


def said(handle: RunHandle) -> list[Any]:
    """What each rank said, when all have ended well."""
    logs = logs_of(handle)
    handle.wait()
    return [json.loads(re.findall(r"SAID (.*)", log)[0]) for log in logs]


def trained_as_one(ranks: list[Any]) -> None:
    for _, _, summed, first, last, weights in ranks:
        assert summed == sum(range(1, len(ranks) + 1))
        assert last < first / 5
        assert weights == ranks[0][5]


def test_all_ranks_train_as_one_cold_and_warm(session: Session) -> None:
    cold = said(session.start(TRAIN, cell=True, gpus=2))
    trained_as_one(cold)
    assert [rank[:2] for rank in cold] == [
        [False, [0, 2, 0, 2, 0, 1]],
        [False, [1, 2, 1, 2, 0, 1]],
    ]
    log = settings().cluster_dir / "node.log"
    until(lambda: "has imported horovod" in log.read_text(), "a zygote with Horovod", 60)
    run = session.start(TRAIN, cell=True, gpus=2)
    warm = said(run)
    trained_as_one(warm)
    assert [rank[0] for rank in warm] == [True, True]
    assert run.run["framework"] == "horovod"
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_one_rank_is_a_world_of_its_own(session: Session) -> None:
    (alone,) = said(session.start(TRAIN, cell=True, gpus=1, framework="horovod"))
    assert alone[1] == [0, 1, 0, 1, 0, 1]


LONG = """
import os, time
from pathlib import Path
import torch, horovod.torch as hvd
from aios_jupyter import train
hvd.init()
folder = Path(os.environ["FOLDER"])
restarted = os.environ["TORCHELASTIC_RESTART_COUNT"]
(folder / f"{hvd.rank()}-{restarted}").write_text(str(os.getpid()))
model = torch.nn.Linear(2, 1)
optimizer = hvd.DistributedOptimizer(
    torch.optim.Adam(model.parameters()), named_parameters=model.named_parameters())
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
state = {"model": model, "optimizer": optimizer}
start = train.restore(state)
print("START", start, flush=True)
for step in range(start, 1_000_000):
    optimizer.zero_grad()
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    if (step + 1) % 10 == 0:
        train.checkpoint(state, step + 1)
    if train.should_stop() or (restarted == "1" and step == start + 20):
        break
weights = [float(p.detach().double().sum()) for p in model.parameters()]
print("SAID", [step, *weights], flush=True)
"""


def test_a_killed_peer_ends_the_run_and_is_named_first(session: Session, tmp_path: Path) -> None:
    handle = session.start(LONG, cell=True, gpus=2, env={"FOLDER": str(tmp_path)})
    pids: list[int] = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint" and not pids:
            pids.extend(int((tmp_path / f"{rank}-0").read_text()) for rank in range(2))
            os.kill(pids[1], signal.SIGKILL)

    logs_of(handle, look)
    with pytest.raises(RunError, match="rank 1 was killed by SIGKILL"):
        handle.wait()
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_restart_goes_on_from_the_checkpoint(session: Session, tmp_path: Path) -> None:
    env = {"FOLDER": str(tmp_path)}
    handle = session.start(LONG, cell=True, gpus=2, max_restarts=1, env=env)
    killed: list[int] = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint" and event["step"] == 30 and not killed:
            killed.append(int((tmp_path / "0-0").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    logs = logs_of(handle, look)
    handle.wait()
    starts = [[int(step) for step in re.findall(r"START (\d+)", log)] for log in logs]
    assert starts[0] == starts[1]
    assert starts[0][0] == 0
    assert starts[0][1] >= 30
    first, second = (re.findall(r"SAID (.*)", log) for log in logs)
    assert first == second != []


def test_a_stop_reaches_all_ranks_in_the_same_step(session: Session, tmp_path: Path) -> None:
    handle = session.start(LONG, cell=True, gpus=2, env={"FOLDER": str(tmp_path)})
    told: list[int] = []

    def look(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint" and not told:
            told.append(event["step"])
            handle.stop()

    logs = logs_of(handle, look)
    with pytest.raises(RunError, match="was stopped"):
        handle.wait()
    first, second = (re.findall(r"SAID (.*)", log) for log in logs)
    assert first == second != []


def test_ranks_of_two_nodes_have_local_and_cross_ranks(tmp_path: Path) -> None:
    """Two agents' gangs on this machine, with two ranks and one."""

    async def run() -> list[list[dict[str, Any]]]:
        whole = Gang(tmp_path, TRAIN, world=3, framework="horovod")
        heard: list[list[dict[str, Any]]] = [[], []]
        gangs = []
        for node, numbers in enumerate(((0, 1), (2,))):
            folder = tmp_path / str(node)
            folder.mkdir()
            ranks = [
                RankSpec(
                    rank=rank, local_rank=local, local_world_size=len(numbers), node_rank=node,
                    nnodes=2, device=f"cpu-{rank}", kind=DeviceKind.CPU, index=rank,
                )
                for local, rank in enumerate(numbers)
            ]  # fmt: skip
            listen = whole.listener.fileno() if node == 0 else None
            meet = whole.gang._rendezvous
            gangs.append(
                LocalGang(whole.gang._spec, ranks, meet, folder, -1, heard[node].extend, listen)
            )
        await asyncio.gather(*(gang.start() for gang in gangs))
        whole.listener.close()
        exits = await asyncio.gather(*(gang.wait() for gang in gangs))
        assert [exit.code for node in exits for exit in node] == [0, 0, 0], heard
        return heard

    heard = asyncio.run(run())
    texts = [""] * 3
    for event in heard[0] + heard[1]:
        if event["type"] == "log" and event["stream"] == "stdout":
            texts[event["rank"]] += event["text"]
    ranks = [json.loads(text.partition("SAID ")[2]) for text in texts]
    trained_as_one(ranks)
    assert [rank[1] for rank in ranks] == [
        [0, 3, 0, 2, 0, 2],
        [1, 3, 1, 2, 0, 1],
        [2, 3, 0, 1, 1, 2],
    ]


TF_KERAS = """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import json
import numpy as np
import tensorflow as tf
import tf_keras
import horovod.tensorflow.keras as hvd
hvd.init()
random = np.random.default_rng(hvd.rank())
x = random.normal(size=(64, 4)).astype("float32")
y = x.sum(1, keepdims=True)
model = tf_keras.Sequential([tf_keras.layers.Dense(8, activation="tanh"), tf_keras.layers.Dense(1)])
optimizer = hvd.DistributedOptimizer(tf_keras.optimizers.legacy.Adam(0.05))
model.compile(optimizer, "mse")
callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0)]
history = model.fit(x, y, batch_size=16, epochs=10, callbacks=callbacks, verbose=0)
summed = float(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum))
weights = [float(np.float64(weight).sum()) for weight in model.get_weights()]
losses = history.history["loss"]
print("SAID", json.dumps([[hvd.rank(), hvd.size()], summed, losses[0], losses[-1], weights]))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason="TensorFlow is not here: make horovod"
)
def test_keras_code_for_horovod_trains_as_one(session: Session) -> None:
    handle = session.start(TF_KERAS, cell=True, gpus=2)
    assert handle.run["framework"] == "horovod"
    first, second = said(handle)
    assert (first[0], second[0]) == ([0, 2], [1, 2])
    assert first[1] == second[1] == 3
    assert first[3] < first[2] / 2
    assert first[4] == second[4]
    until(lambda: len(free(session)) == 4, "the devices are free")
