"""`up`, `down`, `status`, `doctor`."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import click

from ..errors import ClusterError, UsageError
from ..units import format_duration, format_size
from .base import accounts_option, as_json, echo_json
from .host import Host
from .nodes import asked, start_card
from .views import Card, Column, Table, plural

DEVICE_COLUMNS = (
    Column("device", "device"),
    Column("kind", "kind"),
    Column("node", "node"),
    Column("use", "use", right=True, meter="utilization"),
    Column("memory", "memory", right=True, meter="memory_percent"),
    Column("held", "held by"),
)


@click.command()
@click.option(
    "--simulate-gpus",
    type=click.IntRange(min=0),
    metavar="N",
    help="Offer N simulated GPUs on a machine without real ones.",
)
@click.option(
    "--from-snapshot",
    is_flag=True,
    help="Go on from the last snapshot of a journal that is refused as damaged.",
)
@click.option(
    "--host",
    "address",
    metavar="ADDRESS",
    help="Listen at this address of the machine, for nodes and people elsewhere.",
)
@accounts_option
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay: mend it when a part dies, and stop it when this ends (systemd, containers).",
)
@click.option(
    "--on",
    default="",
    metavar="slurm|ssh:HOSTS",
    help="Where more machines come from; the flags below say what is asked for.",
)
@asked
@click.pass_obj
def up(
    host: Host,
    /,
    simulate_gpus: int | None,
    from_snapshot: bool,
    address: str | None,
    accounts: str | None,
    foreground: bool,
    on: str,
    **flags: Any,
) -> None:
    """Start your cluster, or find the one that runs.

    It runs on this machine, belongs to you alone, and ends after half an hour of disuse. With --on
    machines of Slurm, or that ssh reaches, join it as by 'aios node start'; --simulate-gpus then means
    each of them. A cluster that --on slurm starts has none of this machine's devices, which many share.
    """
    wish = {name: value for name, value in flags.items() if value}
    if wish and not on:
        raise UsageError("Say where the machines come from: --on slurm, or --on ssh:HOST,HOST.")
    start: dict[str, Any] = {
        "simulate_gpus": simulate_gpus,
        "host": address,
        "accounts": accounts,
    }
    if foreground:
        if not host.shell_leases:
            raise UsageError("--foreground is for terminals and services; here it would never end.")
        if on:
            raise UsageError(
                "Leave out --on, and ask with 'aios node start' once the cluster is up."
            )
        from ..cluster.keeping import keep

        keep(host.say, from_snapshot=from_snapshot, **start)
        return
    if from_snapshot or on or any(value is not None for value in start.values()):
        from ..session import up as start_cluster

        row = start_cluster(on, from_snapshot=from_snapshot, **start, **wish)
        if row:
            host.show(start_card(row))
            return
    snapshot = host.session(start=True).status()
    host.show(cluster_card(snapshot, time.time()))


@click.command()
@click.pass_obj
def down(host: Host) -> None:
    """Stop the cluster and everything on it.

    Leases, runs and endpoints end. Datasets and published models stay.
    """
    from ..session import down as stop_cluster

    # First: a session that is open while its cluster ends would try to bring it back.
    host.close()
    ended = stop_cluster()
    host.leases_changed()
    ended_text = "1 process" if len(ended) == 1 else f"{len(ended)} processes"
    host.show(Card("cluster", badge="stopped", fields=(("ended", ended_text),)))


@click.command()
@as_json
@click.pass_obj
def status(host: Host, json_: bool) -> Any:
    """Show the devices, how busy they are and who has them."""
    snapshot = host.session(start=False).status()
    if json_:
        return echo_json(snapshot)
    host.show(cluster_card(snapshot, time.time()))
    host.show(device_table(snapshot))
    return None


def cluster_card(snapshot: dict[str, Any], now: float) -> Card:
    """The cluster in a few lines."""
    cluster, devices = snapshot["cluster"], snapshot["devices"].values()
    nodes = snapshot["nodes"].values()
    free = sum(1 for d in devices if not d["holder"] and not d["outside"])
    kinds: dict[str, int] = {}
    for device in devices:
        kinds[device["kind"]] = kinds.get(device["kind"], 0) + 1
    states = [node["state"] for node in nodes]
    other = [
        f"{states.count(state)} {word}"
        for state, word in (("lost", "lost"), ("waiting", "yet to come"), ("ended", "ended"))
        if state in states
    ]
    counted = ", ".join(plural(count, kind_name(kind)) for kind, count in kinds.items())
    warm = [node["warm"] for node in nodes if node.get("warm", {}).get("processes")]
    return Card(
        f"cluster {cluster['name']}",
        badge="simulated devices" if cluster.get("simulated") else "up",
        fields=(
            ("nodes", str(len(nodes)) + (f" ({', '.join(other)})" if other else "")),
            ("devices", f"{counted}; {free} free" if counted else "none"),
            ("queue", plural(len(snapshot["queue"]), "request")),
            *((("kept warm", _warm_text(warm)),) if warm else ()),
            ("up for", format_duration(max(0.0, now - cluster["started"]))),
        ),
    )


def _warm_text(warm: list[dict[str, Any]]) -> str:
    """What nodes keep ready for the next runs: "torch (3 processes, 310 MB)"."""
    frameworks = sorted({name for each in warm for name in each["frameworks"]})
    processes = sum(each["processes"] for each in warm)
    counted = plural(processes, "process", "processes")
    return f"{', '.join(frameworks)} ({counted}, {format_size(sum(e['memory'] for e in warm))})"


def kind_name(kind: str) -> str:
    """What people call a kind of device."""
    names = {"gpu": "GPU", "mig": "MIG slice", "simulated": "simulated GPU", "cpu": "CPU slot"}
    return names.get(kind, kind)


def device_table(snapshot: dict[str, Any]) -> Table:
    """Every device with its use and its holder."""
    return Table(
        DEVICE_COLUMNS,
        [device_row(device) for device in snapshot["devices"].values()],
        empty="The cluster has no devices.",
    )


def device_row(device: dict[str, Any]) -> dict[str, Any]:
    """One device as people read it."""
    used, total = device.get("memory_used"), device.get("memory") or 0
    memory = format_size(total) if total else None
    if used is not None and total:
        memory = f"{format_size(used)} of {format_size(total)}"
    utilization = device.get("utilization")
    return {
        "device": f"{device['name']} #{device['index']}",
        "kind": kind_name(device["kind"]),
        "node": device.get("host") or device["node"],
        "use": f"{utilization:.0f}%" if utilization is not None else None,
        "utilization": utilization,
        "memory": memory,
        "memory_percent": 100 * used / total if used is not None and total else None,
        "held": holder_text(device),
    }


def holder_text(device: dict[str, Any]) -> str:
    """Who holds a device: a lease, a process outside any lease, or "free"."""
    holder, outside = device["holder"], device["outside"]
    if shares := device.get("shares"):
        return "; ".join(f"{_who(one)} {format_size(one['memory'])}" for one in shares)
    if holder:
        return _who(holder)
    if outside:
        process = outside[0]
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        return f"outside any lease: {process['name'] or 'a process'} {process['pid']}{more}"
    return "free"


def _who(holder: dict[str, Any]) -> str:
    who = f"{holder['user']} · {holder['label']}" if holder["label"] else holder["user"]
    return f"{who} ({holder['run'] or holder['lease']})"


@click.command()
@as_json
@click.pass_obj
def doctor(host: Host, json_: bool) -> Any:
    """Check versions, devices and the cluster."""
    facts = [("aios-jupyter", _version("aios-jupyter")), ("Python", platform.python_version())]
    facts += [
        (name, _version(name))
        for name in ("torch", "tensorflow", "horovod", "distributed", "mlflow")
    ]
    facts += [("system", f"{platform.system()} {platform.machine()}"), ("python", sys.executable)]
    facts += [("devices here", _devices()), ("cluster", _cluster(host))]
    if json_:
        return echo_json(dict(facts))
    host.show(Card("aios doctor", fields=tuple(facts)))
    return None


def _version(package: str) -> str:
    import importlib.metadata

    names = (package, f"{package}-skinny", f"{package}-cpu")
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _devices() -> str:
    from ..devices.probe import devices

    counted: dict[str, int] = {}
    for device in devices(platform.node()):
        name = f"{kind_name(device.kind.value)} ({device.name})"
        counted[name] = counted.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counted.items()) or "none"


def _cluster(host: Host) -> str:
    try:
        started = time.monotonic()
        snapshot = host.session(start=False).status()
    except ClusterError as error:
        return str(error)
    milliseconds = 1000 * (time.monotonic() - started)
    nodes = plural(len(snapshot["nodes"]), "node")
    return f"answers in {milliseconds:.0f} ms: {nodes}, version {snapshot['cluster']['version']}"
