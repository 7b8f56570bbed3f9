"""Which machines hold the blocks of files on HDFS, as its NameNode tells by WebHDFS.

Neither fsspec nor hdfs-native has a word for it. A leaf module: it imports fsspec, through `storage`.
"""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import fsspec

from . import storage

# What Hadoop 3 documents, and what all NameNodes answer: Hadoop's own client asks them so.
_QUESTIONS = ("GETFILEBLOCKLOCATIONS", "GET_BLOCK_LOCATIONS")
# Where a NameNode of Hadoop 3 serves WebHDFS if its configuration does not say.
_PORT = 9870
_SECONDS = 5.0
_AT_ONCE = 8


class Block(NamedTuple):
    """A part of a file, and the names and addresses of the machines that hold it."""

    start: int
    stop: int
    hosts: frozenset[str]


def are_known(url: str) -> bool:
    """Whether the storage of a URL has blocks that lie on machines which it names."""
    return url.startswith(("hdfs://", "webhdfs://"))


def of_files(urls: Iterable[str]) -> dict[str, list[Block]]:
    """The blocks of each file; a file is left out where nobody tells."""
    wanted = list(dict.fromkeys(url for url in urls if are_known(url)))
    if not wanted:
        return {}
    doors = _doors(wanted[0])
    # One that is away would be waited for once for each file.
    first = _blocks(wanted[0], doors)
    if first is None:
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rest = pool.map(lambda url: _blocks(url, doors), wanted[1:])
        found = zip(wanted, [first, *rest], strict=True)
        return {url: blocks for url, blocks in found if blocks is not None}


def _blocks(url: str, doors: Iterable[Any]) -> list[Block] | None:
    _, path = storage.locate(url)
    for door in doors:
        # To know where to read is not worth more than to read: errors of `requests` are among these.
        with contextlib.suppress(OSError):
            for question in _QUESTIONS:
                answer = door.session.get(
                    door.url + quote(path), params={**door.pars, "op": question}, timeout=_SECONDS
                )
                # Another server at a port that was only guessed has no answer in JSON.
                found = answer.json() if answer.ok else None
                blocks = read_answer(found) if isinstance(found, dict) else None
                if blocks is not None:
                    return blocks
    return None


def read_answer(answer: Mapping[str, Any]) -> list[Block] | None:
    """The blocks that an answer names, in either of its two forms."""
    if "BlockLocations" in answer:
        return [
            Block(
                int(block["offset"]),
                int(block["offset"]) + int(block["length"]),
                _names(block["hosts"], [name.rpartition(":")[0] for name in block["names"]]),
            )
            for block in answer["BlockLocations"].get("BlockLocation") or ()
        ]
    if "LocatedBlocks" in answer:
        return [
            Block(
                int(block["startOffset"]),
                int(block["startOffset"]) + int(block["block"]["numBytes"]),
                _names(
                    [place["hostName"] for place in block["locations"]],
                    [place["ipAddr"] for place in block["locations"]],
                ),
            )
            for block in (answer["LocatedBlocks"] or {}).get("locatedBlocks") or ()
        ]
    return None


def _names(hosts: Iterable[str], addresses: Iterable[str]) -> frozenset[str]:
    # Beside the NameNode a DataNode has the address that every machine has for itself.
    return frozenset([*hosts, *(a for a in addresses if not ipaddress.ip_address(a).is_loopback)])


def _doors(url: str) -> list[Any]:
    """File systems of WebHDFS that may know the blocks of what is at a URL."""
    if url.startswith("webhdfs://"):
        return [storage.locate(url)[0]]
    host = urlsplit(url).hostname or ""
    user = os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    pairs = [place.rpartition(":") for place in web_addresses(host, _configuration())]
    return [
        # Of its own, so that nothing is asked by way of one that a dataset is read through.
        fsspec.filesystem("webhdfs", host=name, port=int(port), user=user, skip_instance_cache=True)
        for name, _, port in pairs
    ]


def web_addresses(host: str, configuration: Mapping[str, str]) -> list[str]:
    """Where the NameNodes of a host, or of a service of several, serve WebHDFS: `host:port` each."""
    key = "dfs.namenode.http-address"
    several = [at for name, at in configuration.items() if name.startswith(f"{key}.{host}.")]
    if several:
        return several
    name, _, port = configuration.get(key, f":{_PORT}").rpartition(":")
    return [f"{host if name in {'', '0.0.0.0'} else name}:{port}"] if host else []  # noqa: S104


def _configuration() -> dict[str, str]:
    """What Hadoop's configuration on this machine says of HDFS, where hdfs-native reads it too."""
    home = os.environ.get("HADOOP_HOME")
    folder = os.environ.get("HADOOP_CONF_DIR") or (f"{home}/etc/hadoop" if home else "")
    site = Path(folder) / "hdfs-site.xml"
    if not folder or not site.is_file():
        return {}
    return {
        item.findtext("name", "").strip(): item.findtext("value", "").strip()
        for item in ElementTree.parse(site).iter("property")  # noqa: S314 - it is this machine's own
    }
