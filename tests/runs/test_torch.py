"""Torch code on two ranks, forked from a zygote: what is promised for it, proved by running it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from gangs import Gang, warmed

from aios_jupyter.config import IS_LINUX
from aios_jupyter.node.zygotes import Zygotes
from aios_jupyter.runs.spec import COMPRESSIONS, Entry

pytest.importorskip("torch")

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

Said = Callable[..., Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def zygotes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Zygotes]:
    """So that each test need not import torch twice; elsewhere than on Linux there are none."""
    made = Zygotes(tmp_path_factory.mktemp("zygotes"), 600)
    if IS_LINUX:
        await warmed(made, tmp_path_factory.mktemp("first"))
    yield made
    await made.close()


class Both:
    """A run of two ranks that has ended well."""

    def __init__(self, gang: Gang) -> None:
        self.gang = gang
        self.first, self.second = (json.loads(gang.text(r).splitlines()[-1]) for r in range(2))


@pytest.fixture
def both(tmp_path: Path, zygotes: Zygotes) -> Callable[..., Any]:
    async def run(source: str, **more: Any) -> Both:
        folder = tmp_path / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        made = Gang(folder, source, **{"framework": "torch", "zygotes": zygotes, **more})
        exits = await made.run()
        assert [exit.code for exit in exits] == [0, 0], [exits, made.events]
        return Both(made)

    return run


# --- communication hooks

SENT = '''
import json, os, socket, struct, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def sent():
    """Bytes that the kernel has sent on this process's connections."""
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if link.startswith("socket:"):
            with socket.socket(fileno=os.dup(int(fd))) as each:
                if each.type == socket.SOCK_STREAM and each.family != socket.AF_UNIX:
                    facts = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    # tcpi_bytes_acked
                    total += struct.unpack_from("Q", facts, 120)[0]
    return total
'''

# Whoever wrote this has not heard of compression.
TRAIN = """
dist.init_process_group()
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Sequential(
    torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1)))
optimizer = torch.optim.SGD(model.parameters(), 0.05)
truth = torch.linspace(-1, 1, 64)[:, None]
torch.manual_seed(1 + dist.get_rank())
losses = []
for step in range(170):
    if step == 120:
        before = sent()
    x = torch.randn(32, 64)
    loss = ((model(x) - x @ truth) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
per_step = (sent() - before) / 50
weights = [float(p.detach().double().sum()) for p in model.parameters()]
print(json.dumps([losses[0], sum(losses[-10:]) / 10, per_step, weights]))
dist.destroy_process_group()
"""
WHOLE = 4 * (64 * 256 + 256 + 256 + 1)


@pytest.mark.skipif(not IS_LINUX, reason="only Linux counts the bytes of each connection")
async def test_compression_sends_fewer_bytes_and_trains_as_well(both: Said) -> None:
    wire, told, last = {}, {}, {}
    for how in ("", *COMPRESSIONS):
        run = await both(SENT + TRAIN, compress=how)
        begun, ended, wire[how], weights = run.first
        assert weights == run.second[3], how
        assert ended < begun / 50, how
        told[how] = [e["values"] for e in run.gang.of("metrics", 0)][-1]
        log = run.gang.text(0, "stderr")
        assert (f"--- compress {how}: 0.0676 MB of gradients" in log) == bool(how)
        last[how] = [float(each) for each in re.findall(r"in the last one as (\S+) MB", log)]
        assert "compress" not in run.gang.text(1, "stderr")
    # What the kernel counts; some of the last step may be on its way yet.
    assert wire[""] > 0.9 * WHOLE
    for how in ("fp16", "bf16"):
        assert wire[how] < 0.6 * wire[""]
        assert told[how]["sent_mb"] == pytest.approx(WHOLE / 2 / 1e6)
        assert last[how] == [0.0338]
    assert wire["powersgd"] < 0.1 * wire[""]
    # A number for each row and column instead of each weight, and what is no matrix.
    assert last["powersgd"] == [0.00333]
    assert told["powersgd"]["gradient_mb"] == pytest.approx(WHOLE / 1e6)
    assert "sent_mb" not in told[""]


async def test_a_hook_of_the_users_own_stays(both: Said) -> None:
    source = """
        import json, torch, torch.distributed as dist
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
        from torch.nn.parallel import DistributedDataParallel
        dist.init_process_group()
        model = DistributedDataParallel(torch.nn.Linear(2, 1))
        model.register_comm_hook(None, allreduce_hook)
        model(torch.ones(1, 2)).sum().backward()
        print(json.dumps([hook.__name__ for hook, _ in model._comm_hooks]))
        dist.destroy_process_group()
    """
    run = await both(source, compress="fp16")
    assert run.first == run.second == ["allreduce_hook"]
    assert "nothing was compressed" in run.gang.text(0, "stderr")


async def test_what_prepare_has_wrapped_is_compressed_and_can_be_pulled(both: Said) -> None:
    source = """
        import torch
        from aios_jupyter import train
        model = train.prepare(torch.nn.Linear(2, 1))
        model(torch.ones(1, 2)).sum().backward()
        print([hook.__name__ for hook, _ in model._comm_hooks][0] == "aios_bf16" and 1)
    """
    run = await both(source, compress="bf16", pull=("model",))
    assert (run.first, run.second) == (1, 1)
    assert type(run.gang.pulled()["model"]).__name__ == "Linear"


# --- sharded and split models

LEARNS = """
truth = torch.linspace(-1, 1, 8)[:, None]
losses = []
for step in range(12):
    torch.manual_seed(step)
    x = torch.randn(32, 8)
    loss = ((model(x) - x @ truth) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
"""
NET = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)])
        self.head = torch.nn.Linear(8, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)
"""
# The same in one process: what all of the ways have to come to.
ALONE = f"import json, torch\n{NET}\ntorch.manual_seed(0)\nmodel = Net()\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory, zygotes: Zygotes) -> list[float]:
    """Losses of a training in one process."""
    source = f"""{ALONE}
optimizer = torch.optim.Adam(model.parameters(), 0.02)
{LEARNS}
print(json.dumps(losses))
"""
    folder = tmp_path_factory.mktemp("alone")
    made = Gang(folder, source, framework="torch", zygotes=zygotes, world=1)
    await made.run()
    losses: list[float] = json.loads(made.text(0))
    assert losses[-1] < losses[0]
    return losses


async def test_fully_sharded_code_of_the_users_own(both: Said, alone: list[float]) -> None:
    source = f"""{ALONE}
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
mesh = init_device_mesh("cpu", (2,))
for layer in model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.Adam(model.parameters(), 0.02)
{LEARNS}
print(json.dumps([losses, [list(p.to_local().shape) for p in model.parameters()][0]]))
"""
    run = await both(source)
    assert run.first[0] == pytest.approx(alone, rel=1e-3)
    assert run.first[1] == [8, 8], "half of 16 rows"


async def test_prepare_shards_a_model_and_its_optimizer(both: Said, alone: list[float]) -> None:
    source = f"""{ALONE}
from aios_jupyter import train
if train.rank() == 1:
    # Rank 0's weights count.
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
optimizer = torch.optim.Adam(model.parameters(), 0.02)
model, optimizer = train.prepare(model, optimizer, fsdp=True)
assert train.prepare(model, fsdp=True) is model
{LEARNS}
train.checkpoint({{"model": model, "optimizer": optimizer}}, 40)
kept = [p.full_tensor().sum().item() for p in model.parameters()]
for parameter in model.parameters():
    torch.nn.init.zeros_(parameter)
assert train.restore({{"model": model, "optimizer": optimizer}}) == 40
back = [p.full_tensor().sum().item() for p in model.parameters()]
print(json.dumps([losses, kept == back, [p.to_local().numel() for p in model.parameters()]]))
"""
    run = await both(source)
    assert run.first[0] == pytest.approx(alone, rel=1e-3)
    assert run.first[1] is True
    assert run.first[2][0] == 8 * 8, "half of the first layer"
    sizes = [sum(pair) for pair in zip(run.first[2], run.second[2], strict=True)]
    assert sizes == [128, 16, 128, 8, 8, 1]


async def test_a_model_that_is_split_by_a_tensor_parallel_mesh(
    both: Said, alone: list[float]
) -> None:
    source = f"""{ALONE}
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
parallelize_module(model, mesh, {{"layers.0": ColwiseParallel(), "layers.1": RowwiseParallel()}})
optimizer = torch.optim.Adam(model.parameters(), 0.02, foreach=False)
{LEARNS}
print(json.dumps([losses, list(model.layers[0].weight.to_local().shape)]))
"""
    run = await both(source)
    assert run.first == run.second
    assert run.first[0] == pytest.approx(alone, rel=1e-3)
    assert run.first[1] == [8, 8]


@pytest.mark.parametrize("what", ["model", "weights"])
async def test_what_rank_0_has_a_part_of_is_not_pulled(
    tmp_path: Path, zygotes: Zygotes, what: str
) -> None:
    source = """
        import torch
        from aios_jupyter import train
        model = train.prepare(torch.nn.Linear(8, 4), fsdp=True)
        weights = model.state_dict()
    """
    made = Gang(tmp_path, source, framework="torch", zygotes=zygotes, pull=(what,))
    reason = (await made.run())[0].reason
    assert reason.startswith(f"'{what}' cannot be pulled: it is sharded, and rank 0 has a part")
    assert "full_state_dict" in reason


async def test_an_optimizer_that_has_made_steps_cannot_be_sharded(
    tmp_path: Path, zygotes: Zygotes
) -> None:
    source = """
        import torch
        from aios_jupyter import train
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        train.prepare(model, optimizer, fsdp=True)
    """
    made = Gang(tmp_path, source, framework="torch", zygotes=zygotes)
    exits = await made.run()
    assert exits[0].reason.endswith("call prepare() before the first step.")


# --- a script for torchrun

TORCHRUN = '''
"""As in torch's own examples: it knows nothing but what torchrun tells."""
import argparse, json, os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

def main(epochs):
    dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo")
    local, rank = int(os.environ["LOCAL_RANK"]), dist.get_rank()
    data = TensorDataset(torch.arange(32.0)[:, None], 2 * torch.arange(32.0)[:, None])
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    model = DDP(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    seen = 0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            seen += len(x)
    total = torch.tensor(seen)
    dist.all_reduce(total)
    facts = [total.item(), model.module.weight.item(), os.environ["TORCHELASTIC_RUN_ID"] != ""]
    print(json.dumps([local == rank, *facts]))
    dist.destroy_process_group()

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int)
    main(parser.parse_args().epochs)
'''


async def test_a_script_for_torchrun_runs_as_it_is(both: Said, tmp_path: Path) -> None:
    script = tmp_path / "torchrun_script.py"
    script.write_text(TORCHRUN)
    run = await both(str(script), entry=Entry.SCRIPT, argv=("--epochs", "2"))
    assert run.first == run.second
    assert run.first[:2] == [True, 64]
    assert run.first[3] is True


# --- libraries that know torchrun

FITS = """
import json, torch
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.arange(32.0)[:, None], 2 * torch.arange(32.0)[:, None])
loader = DataLoader(data, 4, shuffle=True)
"""

ACCELERATE = f"""{FITS}
from accelerate import Accelerator
accelerator = Accelerator()
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), 1e-4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
seen = 0
for epoch in range(2):
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.mse_loss(model(x), y))
        optimizer.step()
        seen += len(x)
weight = accelerator.unwrap_model(model).weight.item()
print(json.dumps([accelerator.num_processes, accelerator.process_index, seen, weight]))
accelerator.end_training()
"""

LIGHTNING = f"""{FITS}
import lightning, lightning.pytorch.callbacks

class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.mse_loss(self.layer(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)

# Where rich is installed it would show a bar of that.
bar = lightning.pytorch.callbacks.TQDMProgressBar()
trainer = lightning.Trainer(
    max_epochs=2, logger=False, enable_checkpointing=False, callbacks=[bar]
)
net = Net()
trainer.fit(net, loader)
seen = 4 * trainer.global_step
print(json.dumps([trainer.world_size, trainer.global_rank, seen, net.layer.weight.item()]))
"""


@pytest.mark.parametrize(
    ("library", "source"), [("accelerate", ACCELERATE), ("lightning", LIGHTNING)]
)
async def test_code_for_libraries_is_distributed_as_it_is(
    both: Said, library: str, source: str
) -> None:
    pytest.importorskip(library, reason=f"{library} is not here: pip install '.[test]'")
    run = await both(source)
    assert run.first[:3] == [2, 0, 32], "each rank had half of two epochs of 32"
    assert run.second[:3] == [2, 1, 32]
    assert run.first[3] == run.second[3]
    # Lightning's own bar begins anew with each epoch.
    steps = {"accelerate": 8, "lightning": 4}
    assert run.gang.of("progress", 0)[-1]["done"] == steps[library]
