"""How long a lease takes: from the notebook's thread to lease in hand, TLS and journal on.

Measured against a raw Dask RPC ping to the same scheduler in the same run, the two interleaved.
`pairs_per_second`: 50 clients that each allocate and release as fast as they can, all in this
process; `broker_us_per_pair` is the processor time that the broker takes for one such pair, and
`clients_us_per_pair` what the clients take: these say the same on a busy machine.

Then beside other ways to get a GPU, twenty of each in turn, each turn after a pause in which what
the one before had is put away: plain Dask, and where they are installed a Ray placement group and
Slurm (`peers/`). `ray_over_ours` is their median over ours in the same turns, and so on for each. A
Slurm command is measured to its end, as it starts when the device is there; ours and Ray's until
then.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import statistics
import tempfile
import time

ROUNDS = 500
CLIENTS = 50
SECONDS = 4.0
PEER_ROUNDS, IN_A_ROW = 5, 20
# After a turn: what was given back is still being put away, on the same processors.
SETTLED = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", metavar="PYTHON", help="an interpreter that has Ray")
    parser.add_argument("--no-peers", action="store_true", help="against Dask's RPC alone")
    chosen = parser.parse_args()
    peers: dict[str, float] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        os.environ["JUPYTER_RUNTIME_DIR"] = f"{directory}/runtime"
        os.environ["JUPYTER_DATA_DIR"] = f"{directory}/data"
        from aios_jupyter.session import connect, down

        with connect(simulate_gpus=8) as session:
            lease, ping = interleaved(session)
            pairs = asyncio.run(pairs_per_second(session.status()["cluster"]["broker_pid"]))
            if not chosen.no_peers:
                peers, versions = beside(session, chosen.ray)
        down()
    from report import report

    report(
        "lease_latency",
        {
            "median_over_rpc": statistics.median(lease) / statistics.median(ping),
            "p99_over_rpc": quantile(lease, 0.99) / quantile(ping, 0.99),
            "p99_over_median": quantile(lease, 0.99) / statistics.median(lease),
            "median_ms": statistics.median(lease) * 1e3,
            "rpc_median_ms": statistics.median(ping) * 1e3,
            **pairs,
            **peers,
        },
        {"distributed": importlib.metadata.version("distributed"), **versions},
    )


def beside(session, ray_python: str | None) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of other ways to get a GPU, and their versions."""
    from peers import installed

    ours: list[float] = []
    with installed(ray_python) as peers:
        theirs: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(PEER_ROUNDS):
            time.sleep(SETTLED)
            for _ in range(IN_A_ROW):
                started = time.perf_counter()
                lease = session.alloc(gpus=1)
                ours.append(time.perf_counter() - started)
                session.release(lease.id)
            for name, peer in peers.items():
                time.sleep(SETTLED)
                theirs[name] += [peer.take() for _ in range(IN_A_ROW)]
        versions = {name: peer.version for name, peer in peers.items()}
    base = statistics.median(ours)
    figures = {f"{n}_over_ours": statistics.median(v) / base for n, v in theirs.items()}
    figures |= {f"{n}_median_ms": statistics.median(v) * 1e3 for n, v in theirs.items()}
    return {**figures, "beside_peers_median_ms": base * 1e3}, versions


def interleaved(session) -> tuple[list[float], list[float]]:
    """Seconds of each `alloc`, and of each Dask ping, taken in turn."""
    from distributed import Client
    from distributed.security import Security

    from aios_jupyter.cluster.embedded import Paths
    from aios_jupyter.tls import Bundle

    bundle = Bundle.dask(Paths.current().tls)
    security = Security(
        tls_ca_file=str(bundle.authority),
        tls_client_cert=str(bundle.certificate),
        tls_client_key=str(bundle.key),
        require_encryption=True,
    )
    leases, pings = [], []
    with Client(session.client.welcome.dask, security=security, set_as_default=False) as client:

        async def ping() -> None:
            await client.scheduler.identity(n_workers=0)

        for turn in range(ROUNDS + 20):
            started = time.perf_counter()
            lease = session.alloc(gpus=1)
            middle = time.perf_counter()
            client.sync(ping)
            ended = time.perf_counter()
            session.release(lease.id)
            if turn >= 20:
                leases.append(middle - started)
                pings.append(ended - middle)
    return leases, pings


async def pairs_per_second(broker: int) -> dict[str, float]:
    """Alloc and release pairs a second of all clients together, and what each takes."""
    import psutil

    from aios_jupyter.broker.client import AsyncClient
    from aios_jupyter.broker.messages import ById
    from aios_jupyter.cluster import embedded
    from aios_jupyter.schema import Request, Want

    async def locate():
        return embedded.ensure(start=False)["address"], embedded.Paths.current().user

    clients = [await AsyncClient(locate, label="bench").open() for _ in range(CLIENTS)]
    done = 0
    deadline = time.perf_counter() + SECONDS

    async def work(number: int, client: AsyncClient) -> None:
        nonlocal done
        turn = 0
        while time.perf_counter() < deadline:
            turn += 1
            request = Request(id=f"b-{number}-{turn}", session="", user="", want=Want.GPU, count=1)
            grant = await (await client.submit(request)).granted
            await client.call("release", ById(id=grant.lease.id))
            done += 1

    def spent() -> tuple[float, float, float]:
        times = psutil.Process(broker).cpu_times()
        return time.perf_counter(), times.user + times.system, time.process_time()

    before = spent()
    await asyncio.gather(*(work(number, client) for number, client in enumerate(clients)))
    elapsed, of_broker, own = (b - a for a, b in zip(before, spent(), strict=True))
    for client in clients:
        await client.close()
    return {
        "pairs_per_second": done / elapsed,
        "broker_us_per_pair": of_broker / done * 1e6,
        "clients_us_per_pair": own / done * 1e6,
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
