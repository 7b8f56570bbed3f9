"""What can never be granted, and what could instead. Pure."""

from __future__ import annotations

from ..errors import AiosError, AllocationError, UsageError
from ..schema import Placement, Want
from .demand import ANY, Demand
from .hardware import Hardware
from .policy import Pool


def refusal(want: Want, pool: Pool, demand: Demand, hardware: Hardware) -> AiosError | None:
    """Why a request could never be granted, naming the largest that could; or None.

    Parameters
    ----------
    want, pool
        What is asked for, and the pool that it would be taken from.
    demand
        How much of it.
    hardware
        All known nodes, up or down.
    """
    if wrong := _nonsense(demand):
        return UsageError(wrong)
    if demand.least <= hardware.most(pool, demand):
        return None
    if not hardware.devices(pool):
        return AllocationError(_nothing(want))
    one, many = _words(want, pool)
    return AllocationError(
        _not_there(one, pool, demand, hardware)
        or _no_device(one, pool, demand, hardware)
        or _no_node(one, pool, demand, hardware)
        or _too_many(one, many, pool, demand, hardware)
    )


def _nonsense(demand: Demand) -> str:
    count, least, each, _ = demand
    if count <= 0:
        return f"{count} is not a number of devices; ask for at least one."
    if not 0 < least <= count:
        return f"{least}:{count} is not a range of devices; write it like 2:4, the least first."
    if each.memory < 0:
        return f"{each.memory} bytes is not an amount of memory; ask for 0 or more."
    if each.cpus < 0 or each.host_memory < 0:
        return (
            "What of a node comes with each device cannot be less than nothing; ask for 0 or more."
        )
    if each.share and not each.memory:
        return "A share of what? Say how much of a device's memory with --gpu-memory, like 8GB."
    return ""


def _nothing(want: Want) -> str:
    if want is Want.GPU:
        return (
            "This cluster has no GPU: ask with '--devices N' to take CPU slots where there is no "
            "accelerator, or try GPUs on a cluster started with 'aios up --simulate-gpus N'."
        )
    return (
        "The cluster knows of no node with devices yet; look at 'aios status' and ask again when "
        "one has joined."
    )


def _not_there(one: str, pool: Pool, demand: Demand, hardware: Hardware) -> str:
    """Why the node that is named has nothing of the kind."""
    node = demand.each.node
    if node and not hardware.has(node):
        return f"There is no node {node!r}; 'aios node list' has their names."
    if node and not hardware.suiting(pool, ANY._replace(node=node)):
        return f"Node {node} has no {one}; name another one, or leave --node out."
    return ""


def _no_device(one: str, pool: Pool, demand: Demand, hardware: Hardware) -> str:
    """Why no device would do."""
    each = demand.each
    whose = f"node {each.node}" if each.node else "this cluster"
    if each.share and pool is Pool.CPU:
        return "A share is a part of an accelerator's memory: leave --share out for CPU slots."
    of_model = ANY._replace(model=each.model, node=each.node)
    if not hardware.suiting(pool, of_model):
        names = ", ".join(repr(name) for name in hardware.names(pool, each)[:5])
        return f"No {one} of {whose} is a '{each.model}': there is {names}, ask for that."
    if hardware.suiting(pool, of_model._replace(memory=each.memory)):
        return ""
    largest = _size(hardware.largest_memory(pool, each))
    model = f" '{each.model}'" if each.model else ""
    return (
        f"No {one}{model} of {whose} has {_size(each.memory)} of memory: the largest has "
        f"{largest}, ask for that or less."
    )


def _no_node(one: str, pool: Pool, demand: Demand, hardware: Hardware) -> str:
    """Why no node has enough beside its devices."""
    each = demand.each
    cores, memory = hardware.largest_node(pool, each)
    if each.cores(pool) > cores:
        return (
            f"No node can give {each.cpus} CPUs with each {one}: the largest with such a {one} has "
            f"{cores}, ask for that or less."
        )
    if each.host_memory > memory:
        return (
            f"No node can give {_size(each.host_memory)} of its memory with each {one}: the "
            f"largest with such a {one} has {_size(memory)}, ask for that or less."
        )
    return ""


def _too_many(one: str, many: str, pool: Pool, demand: Demand, hardware: Hardware) -> str:
    each, most = demand.each, hardware.most(pool, demand)
    what = one if demand.least == 1 else many
    kind = f" '{each.model}'" if each.model else ""
    parts = []
    if each.memory and not each.share:
        parts.append(f"{_size(each.memory)} of memory or more")
    if each.cpus:
        parts.append(f"{each.cpus} CPUs each")
    if each.host_memory:
        parts.append(f"{_size(each.host_memory)} of their node's memory each")
    having = f" with {' and '.join(parts)}" if parts else ""
    if each.node:
        where, whose = f" on node {each.node}", "what that"
    elif demand.placement is Placement.NODE:
        where, whose = " on one node", "the largest node"
    else:
        where, whose = "", "all that this cluster"
    return (
        f"{demand.least} {what}{kind}{having}{where} can never be granted here: ask for at most "
        f"{most}, which is {whose} has."
    )


def _words(want: Want, pool: Pool) -> tuple[str, str]:
    if pool is Pool.CPU:
        return "CPU slot", "CPU slots"
    return ("GPU", "GPUs") if want is Want.GPU else ("device", "devices")


def _size(memory: int) -> str:
    return f"{memory / 1e9:.3g} GB"
