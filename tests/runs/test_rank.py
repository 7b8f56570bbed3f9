"""What a rank finds around it, before and while the user's code runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.node.network import interface_of
from aios_jupyter.runs import frameworks
from aios_jupyter.runs import rank as ranks
from aios_jupyter.runs.rank import Orders, environment
from aios_jupyter.runs.spec import Entry, RankSpec, Rendezvous, RunSpec
from aios_jupyter.schema import DeviceKind, RunKind


def orders(
    kind: DeviceKind = DeviceKind.CPU, *, address: str = "127.0.0.1", **more: object
) -> Orders:
    spec = RunSpec(
        id="r1", lease="l1", kind=RunKind.TRAIN, name="n", entry=Entry.CELL, world_size=4
    )
    own = RankSpec(
        rank=3, local_rank=1, local_world_size=2, node_rank=1, nnodes=2, device="GPU-b", kind=kind,
        index=1, devices=("GPU-a", "GPU-b"),
    )  # fmt: skip
    meet = Rendezvous(address=address, port=29400)
    made: dict[str, object] = {
        "directory": "", "file": "", "parent": 1, "event_fd": 0, "lifeline_fd": 0, "agent_store": True,
        "threads": 3, **more,
    }  # fmt: skip
    return Orders(spec=spec, rank=own, rendezvous=meet, **made)  # type: ignore[arg-type]


def test_environment_is_that_of_torchrun() -> None:
    found = environment(orders(), {})
    wanted = {
        "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "ROLE_RANK": "3", "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "ROLE_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "r1",
        "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    assert wanted.items() <= found.items()


@pytest.mark.parametrize(
    ("kind", "visible", "device", "local", "local_world"),
    [
        (DeviceKind.CPU, "", "cpu", "1", "2"),
        (DeviceKind.SIMULATED, "", "cpu", "1", "2"),
        (DeviceKind.GPU, "GPU-a,GPU-b", "cuda:1", "1", "2"),
        (DeviceKind.MIG, "GPU-b", "cuda:0", "0", "1"),
    ],
)
def test_devices_that_a_rank_sees(
    kind: DeviceKind, visible: str, device: str, local: str, local_world: str
) -> None:
    found = environment(orders(kind), {})
    assert found["CUDA_VISIBLE_DEVICES"] == visible
    assert found["AIOS_DEVICE"] == device
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == (local, local_world)


def test_a_share_of_a_device_is_told_to_its_rank() -> None:
    whole = orders(DeviceKind.GPU)
    part = whole.__replace__(rank=whole.rank.__replace__(share=8 * 10**9))
    assert environment(part, {})["AIOS_DEVICE_MEMORY"] == "8000000000"
    assert "AIOS_DEVICE_MEMORY" not in environment(whole, {})


def test_torch_keeps_to_its_share_once_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from aios_jupyter.runs import torch as attached

    deferred: list[Callable[[], None]] = []
    limits: list[tuple[float, str]] = []
    card = types.SimpleNamespace(total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "_lazy_call", deferred.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, device: limits.append((fraction, str(device))),
    )
    monkeypatch.setenv("AIOS_DEVICE", "cpu")
    attached._keep_to(4 * 10**9)
    assert not deferred
    monkeypatch.setenv("AIOS_DEVICE", "cuda:1")
    attached._keep_to(4 * 10**9)
    assert not limits, "CUDA is not used yet"
    deferred[0]()
    assert limits == [(0.25, "cuda:1")]


@pytest.mark.parametrize(
    ("kind", "on_cpu", "devices", "nodes"),
    [
        (DeviceKind.SIMULATED, True, "2", "2"),
        (DeviceKind.GPU, False, "2", "2"),
        (DeviceKind.MIG, False, "1", "4"),
    ],
)
def test_accelerate_and_lightning_are_told_in_their_own_words(
    kind: DeviceKind, on_cpu: bool, devices: str, nodes: str
) -> None:
    found = environment(orders(kind), {})
    assert (found.get("ACCELERATE_USE_CPU") == "true") is on_cpu
    assert (found["PL_TRAINER_DEVICES"], found["PL_TRAINER_NUM_NODES"]) == (devices, nodes)


def test_what_the_user_has_set_stays() -> None:
    found = environment(
        orders(interface="lo"), {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth3", "RANK": "9"}
    )
    assert "OMP_NUM_THREADS" not in found
    assert "GLOO_SOCKET_IFNAME" not in found
    assert found["RANK"] == "3"


def test_gloo_is_bound_to_the_interface_of_the_node() -> None:
    assert environment(orders(interface="eth1"), {})["GLOO_SOCKET_IFNAME"] == "eth1"
    assert "GLOO_SOCKET_IFNAME" not in environment(orders(), {})


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == interface_of("127.3.2.1") in ("lo", "lo0")
    assert interface_of("203.0.113.9") == ""


def test_a_notebooks_plotting_backend_is_not_inherited() -> None:
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    assert environment(orders(), inline)["MPLBACKEND"] == "Agg"
    assert "MPLBACKEND" not in environment(orders(), {"MPLBACKEND": "svg"})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "aios_test_framework"
    (tmp_path / f"{name}.py").write_text("ready = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    yield name
    sys.meta_path[:] = before
    sys.modules.pop(name, None)


def test_an_import_is_followed_by_the_action_once(module: str) -> None:
    calls: list[bool] = []
    frameworks.after_import(module, lambda: calls.append(sys.modules[module].ready))
    # Libraries look for a framework without importing it.
    assert importlib.util.find_spec(module) is not None
    assert calls == []
    importlib.import_module(module)
    assert calls == [True]
    importlib.reload(sys.modules[module])
    assert calls == [True]


def test_an_action_after_the_import_comes_at_once(module: str) -> None:
    importlib.import_module(module)
    calls: list[int] = []
    frameworks.after_import(module, lambda: calls.append(1))
    assert calls == [1]


def test_a_framework_that_is_not_there_is_the_usual_error() -> None:
    before = list(sys.meta_path)
    try:
        frameworks.after_import("aios_no_such_module", lambda: None)
        with pytest.raises(ModuleNotFoundError, match="aios_no_such_module"):
            importlib.import_module("aios_no_such_module")
    finally:
        sys.meta_path[:] = before


def test_an_error_of_ours_needs_no_traceback() -> None:
    said = ranks._error(UsageError("Do it differently."), orders())
    assert (said.ours, said.message, said.traceback) == (True, "Do it differently.", "")


def test_an_exception_that_cannot_be_shown_is_reported_all_the_same() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    said = ranks._error(Broken(), orders())
    assert said.etype == "Broken"
    assert "cannot be shown" in said.message


def test_a_long_message_is_cut() -> None:
    said = ranks._error(ValueError("x" * 1_000_000), orders())
    assert len(said.message) == ranks.LONGEST_MESSAGE
    assert len(said.traceback) <= ranks.LONGEST_TRACEBACK
