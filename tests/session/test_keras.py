"""Keras code on two ranks of a live cluster: trained as one, stopped as one, gone on with."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import free, until

from aios_jupyter.errors import RunError
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.session import Session

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorflow") is None,
        reason="TensorFlow is not here: make test-tensorflow",
    ),
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # Keras's own, where a model is pulled.
    pytest.mark.filterwarnings("ignore"),
]

DATA = """
import hashlib
import numpy as np
random = np.random.default_rng(0)
x = random.normal(size=(51, 4)).astype("float32")
y = (x.sum(1, keepdims=True) > 0).astype("float32")

def say_hash(model):
    data = b"".join(np.ascontiguousarray(weight).tobytes() for weight in model.get_weights())
    print("HASH", hashlib.sha256(data).hexdigest(), flush=True)
"""

KERAS = (
    DATA
    + """
import keras
from aios_jupyter import train
if train.rank() == 0:
    keras.utils.set_random_seed(5)
model = keras.Sequential([
    keras.layers.Dense(8, activation="relu"),
    keras.layers.Dense(1, activation="sigmoid"),
])
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
full = model.fit(x, y, batch_size=51, epochs=5, shuffle=False)
say_hash(model)
first = model.get_weights()
# 51 = 3 * 16 + 3: an odd last batch, of which the ranks have different numbers of rows.
model.fit(x, y, batch_size=16, epochs=3, shuffle=False, validation_data=(x, y))
say_hash(model)
weights, losses = model.get_weights(), full.history["loss"]
"""
)


def followed(handle: RunHandle) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """All events of a run, and each rank's log."""
    events = list(handle.events())
    logs = dict.fromkeys(range(handle.world_size), "")
    for event in events:
        if event["type"] == "log":
            logs[event["rank"]] += event["text"]
    return events, logs


def hashes(log: str) -> list[str]:
    return re.findall(r"HASH (\w+)", log)


def test_a_plain_fit_is_the_same_on_all_ranks_and_as_on_one(session: Session) -> None:
    pull = ["first", "weights", "losses"]
    handle = session.start(KERAS, cell=True, gpus=2, pull=[*pull, "model"])
    events, logs = followed(handle)
    two = handle.wait().pulled
    assert len(hashes(logs[0])) == 2
    assert hashes(logs[0]) == hashes(logs[1])
    one = session.train(KERAS, cell=True, gpus=1, pull=pull).pulled
    for name in ("first", "weights"):
        for mine, theirs in zip(two[name], one[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    # The model itself comes back too, free of the ranks.
    for mine, theirs in zip(two["model"].get_weights(), two["weights"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    two["model"].fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0)
    # A rank's own share has another loss: what is told is close to that of all rows.
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0.02)
    progress = [e for e in events if e["type"] == "progress" and e["rank"] == 0]
    assert (progress[-1]["done"], progress[-1]["total"]) == (12, 12)
    metrics: dict[str, float] = {}
    for event in events:
        if event["type"] == "metrics" and event["rank"] == 0:
            metrics |= event["values"]
    assert {"loss", "accuracy", "val_loss", "steps_per_second"} <= metrics.keys()
    assert metrics["samples_per_second"] > metrics["steps_per_second"]
    # Rank 0 has a line for each epoch, the other none.
    assert "Epoch 5/5" in logs[0]
    assert "Epoch" not in logs[1]
    until(lambda: len(free(session)) == 4, "the devices are free")


WARM = (
    "import sys\nwarm = 'keras' in sys.modules\n"
    + DATA
    + """
import keras
model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(1)])
model.compile("adam", "mse")
model.fit(x, y, batch_size=17, epochs=2)
say_hash(model)
print("SAID", warm, flush=True)
"""
)


def test_ranks_that_wait_with_keras_imported_train_as_one(session: Session) -> None:
    session.train(WARM, cell=True, gpus=2)
    until(lambda: waiting(session).get("processes", 0) >= 2, "two processes that wait", 90)
    assert waiting(session)["frameworks"] == ["tensorflow"]
    assert waiting(session)["memory"] > 100_000_000
    handle = session.start(WARM, cell=True, gpus=2)
    _, logs = followed(handle)
    handle.wait()
    assert all("SAID True" in log for log in logs.values()), logs
    assert hashes(logs[0]) == hashes(logs[1]) != []


def waiting(session: Session) -> dict[str, Any]:
    (node,) = session.status()["nodes"].values()
    warm: dict[str, Any] = node["warm"]
    return warm


CALLBACKS = (
    DATA
    + """
import keras, os
from aios_jupyter import train
folder = os.environ["FOLDER"]
seen = []

class Notes(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        seen.append(logs["loss"])
        # What one rank decides, all do.
        if train.rank() == 1 and epoch == 3:
            self.model.stop_training = True

model = keras.Sequential([
    keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.2),
    keras.layers.Dense(1),
])
model.compile("adam", "mse")
data = __import__("tensorflow").data.Dataset.from_tensor_slices((x, y)).shuffle(51).batch(8)
model.fit(data, epochs=50, callbacks=[
    Notes(), keras.callbacks.ModelCheckpoint(folder + "/best.keras", save_best_only=True, monitor="loss"),
    keras.callbacks.CSVLogger(folder + "/log.csv"),
])
say_hash(model)
print("SEEN", [round(value, 9) for value in seen], flush=True)
"""
)


def test_callbacks_decide_the_same_and_write_once(session: Session, tmp_path: Path) -> None:
    handle = session.start(CALLBACKS, cell=True, gpus=2, env={"FOLDER": str(tmp_path)})
    _, logs = followed(handle)
    handle.wait()
    assert len(hashes(logs[0])) == 1
    assert hashes(logs[0]) == hashes(logs[1])
    seen = [re.findall(r"SEEN (.*)", log) for log in logs.values()]
    assert seen[0] == seen[1]
    assert len(seen[0][0].split(",")) == 4
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    assert (tmp_path / "best.keras").exists()


KINDS = (
    DATA
    + """
import keras
import tensorflow as tf

class Two(keras.Model):
    # Two optimizers in a train_step of its own, as a GAN has.
    def __init__(self):
        super().__init__()
        self.a, self.b = keras.layers.Dense(3), keras.layers.Dense(4)

    def call(self, x):
        return self.b(self.a(x))

    def compile(self, first, second):
        super().compile()
        self.first, self.second = first, second

    def train_step(self, x):
        for optimizer, layer in ((self.first, self.a), (self.second, self.b)):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - x) ** 2)
            grads = tape.gradient(loss, layer.trainable_variables)
            optimizer.apply_gradients(zip(grads, layer.trainable_variables))
        return {"loss": loss}

two = Two()
two.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02))
two.fit(x, batch_size=8, epochs=2)
say_hash(two)

sparse = keras.Sequential([keras.layers.Embedding(10, 4), keras.layers.Flatten(), keras.layers.Dense(1)])
sparse.compile("adam", "mse", steps_per_execution=3)
sparse.fit(np.arange(50)[:, None] % 10, y[:50], batch_size=8, epochs=2)
say_hash(sparse)

keras.mixed_precision.set_global_policy("mixed_float16")
half = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1, dtype="float32")])
half.compile("adam", "mse")
half.fit(x, y, batch_size=16, epochs=2)
say_hash(half)
"""
)


def test_other_kinds_of_models_end_the_same_on_all_ranks(session: Session) -> None:
    handle = session.start(KINDS, cell=True, gpus=2)
    _, logs = followed(handle)
    handle.wait()
    assert len(hashes(logs[0])) == 3
    assert hashes(logs[0]) == hashes(logs[1])


LEGACY = (
    DATA
    + """
import os
import tensorflow as tf
model = tf.keras.Sequential([tf.keras.layers.Dense(8), tf.keras.layers.Dense(1)])
model.compile(tf.keras.optimizers.SGD(0.05), "mse")
model.fit(x[:50], y[:50], batch_size=50, epochs=4, shuffle=False)
say_hash(model)
from aios_jupyter import train
train.checkpoint({"model": model}, 4)
print("MODULE", type(model).__module__, tf.distribute.get_strategy().num_replicas_in_sync, flush=True)
"""
)


@pytest.mark.skipif(importlib.util.find_spec("tf_keras") is None, reason="tf_keras is not here")
def test_tf_keras_fits_under_the_strategy_of_all_ranks(session: Session) -> None:
    handle = session.start(LEGACY, cell=True, gpus=2, env={"TF_USE_LEGACY_KERAS": "1"})
    events, logs = followed(handle)
    handle.wait()
    assert "MODULE tf_keras" in logs[0]
    assert re.search(r"MODULE tf_keras\S* 2", logs[1])
    assert hashes(logs[0]) == hashes(logs[1]) != []
    assert [e["step"] for e in events if e["type"] == "checkpoint"] == [4]
    assert any(e["type"] == "progress" for e in events)


STRATEGY = """
import json, os
task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
import tensorflow as tf
from tensorflow import keras
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    optimizer = keras.optimizers.SGD(0.01)

@tf.function
def step():
    def one():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(tf.ones((8, 4))) - 1.0) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables))
        return loss
    return strategy.reduce("MEAN", strategy.run(one), axis=None)

losses = [float(step()) for _ in range(3)]
print("LOSSES", task, strategy.num_replicas_in_sync, losses[0] > losses[-1], flush=True)
"""


def test_a_script_with_its_own_strategy_runs_unchanged(session: Session, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(STRATEGY)
    handle = session.start(script, gpus=2)
    _, logs = followed(handle)
    handle.wait()
    for rank in range(2):
        assert f"LOSSES {rank} 2 True" in logs[rank]


LONG = (
    DATA
    + """
import os
from pathlib import Path
import keras
from aios_jupyter import train
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
folder, restarted = Path(os.environ["FOLDER"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
(folder / f"{train.rank()}-{restarted}").write_text(str(os.getpid()))

class Keep(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        train.checkpoint({"model": self.model}, epoch + 1)

start = train.restore({"model": model})
print("START", start, int(model.optimizer.iterations), flush=True)
model.fit(x, y, batch_size=51, epochs=start + 2 if restarted == "1" else 100_000,
          initial_epoch=start, callbacks=[Keep()])
say_hash(model)
"""
)


STARTS = re.compile(r"START (\d+) (\d+)")


def test_a_killed_rank_is_the_cause_and_the_restart_goes_on(
    session: Session, tmp_path: Path
) -> None:
    env = {"FOLDER": str(tmp_path)}
    handle = session.start(LONG, cell=True, gpus=2, max_restarts=1, env=env)
    events: list[dict[str, Any]] = []
    for event in handle.events():
        events.append(event)
        if event["type"] == "checkpoint" and event["step"] == 3:
            os.kill(int((tmp_path / "1-0").read_text()), signal.SIGKILL)
    handle.wait()
    (restart,) = (event for event in events if event["type"] == "restart")
    assert restart["reason"].startswith("rank 1 was killed by SIGKILL")
    logs = ["", ""]
    for event in events:
        if event["type"] == "log":
            logs[event["rank"]] += event["text"]
    first, second = ([tuple(map(int, each)) for each in STARTS.findall(log)] for log in logs)
    assert first == second
    assert first[0] == (0, 0)
    assert first[1][0] >= 3
    # One step an epoch: the optimizer has gone on too.
    assert first[1][0] == first[1][1]
    assert hashes(logs[0]) == hashes(logs[1]) != []
    until(lambda: len(free(session)) == 4, "the devices are free")


def test_a_killed_rank_ends_the_run_with_its_reason(session: Session, tmp_path: Path) -> None:
    handle = session.start(LONG, cell=True, gpus=2, env={"FOLDER": str(tmp_path)})
    pids = []
    for event in handle.events():
        if event["type"] == "checkpoint" and not pids:
            pids = [int((tmp_path / f"{rank}-0").read_text()) for rank in range(2)]
            os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RunError, match="rank 0 was killed by SIGKILL"):
        handle.wait()
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    until(lambda: len(free(session)) == 4, "the devices are free")
