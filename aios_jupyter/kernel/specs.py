"""Kernelspecs that ask for devices: `kernel add`, `kernel ls`, `kernel rm`.

They are files in the user's Jupyter directory, which front ends and papermill list with all others.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ..errors import ConflictError, NotFoundError, UsageError
from ..session.asking import KERNEL_ASKS, KernelAsks, request_of, settled
from ..units import format_duration, format_size, parse_count, parse_duration

PROVISIONER = "aios-provisioner"
PICTURES = Path(__file__).parent / "spec"
# Jupyter's own rule for a kernel's name.
NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
NOUNS = {"gpus": "GPU", "devices": "device", "cpus": "CPU slot"}


def add(
    *, name: str = "", display_name: str = "", replace: bool = False, **asks: Unpack[KernelAsks]
) -> dict[str, Any]:
    """Add a kernel that has devices of its own, for every front end of this user.

    Parameters
    ----------
    name, display_name
        What `-k` and what people call it; made of what it asks for by default.
    replace
        Take the place of a kernel of that name.
    asks
        What it leases before it starts, and when it gives that back: see `KernelAsks`.

    Returns
    -------
    dict
        `name`, `display_name`, `path`, and what it asks for.

    Raises
    ------
    UsageError
        What is asked for makes no sense.
    ConflictError
        There is a kernel of that name.
    """
    config = settled(asks, KERNEL_ASKS)
    request_of(config)
    name = name or _name(config)
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a kernel's name; use letters, digits, '.', '-' and '_'.")
    if name in _all() and not replace:
        raise ConflictError(
            f"There is a kernel {name!r}; give another --name, or --replace to put this in its place."
        )
    spec = {
        "argv": [
            *(sys.executable, "-m", "ipykernel_launcher"),
            *("-f", "{connection_file}", "--ext=aios_jupyter.notebook"),
        ],
        "display_name": display_name or f"Python (AIOS, {asks_text(config)})",
        "language": "python",
        "metadata": {
            "debugger": True,
            "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config},
        },
    }
    with tempfile.TemporaryDirectory() as directory:
        for picture in PICTURES.glob("logo*"):
            shutil.copy(picture, directory)
        Path(directory, "kernel.json").write_text(json.dumps(spec, indent=2))
        path = _manager().install_kernel_spec(directory, kernel_name=name, user=True)
    return _row(name, {"resource_dir": path, "spec": spec})


def ls() -> list[dict[str, Any]]:
    """The kernels that ask for devices, by name; each as `add` gives it."""
    rows = [_row(name, found) for name, found in sorted(_all().items())]
    return [row for row in rows if row["config"] is not None]


def rm(name: str) -> str:
    """Remove a kernel that `add` has made; gives back where it was.

    Raises
    ------
    NotFoundError
        There is no such kernel.
    ConflictError
        It is not one of ours, or was installed for everybody.
    """
    found = {row["name"]: row for row in ls()}.get(name)
    if found is None:
        others = ", ".join(row["name"] for row in ls() if row["own"])
        raise NotFoundError(
            f"There is no kernel {name!r} that asks for devices; "
            + (f"yours are {others}." if others else "'aios kernel add' makes one.")
        )
    if not found["own"]:
        raise ConflictError(
            f"Kernel {name!r} was installed for everybody, in {found['path']}; remove it there."
        )
    shutil.rmtree(found["path"])
    return str(found["path"])


def asks_text(config: Mapping[str, Any]) -> str:
    """`2 GPUs a100, 4 h`: what a kernel asks for."""
    which = next(kind for kind in NOUNS if config.get(kind) is not None)
    least, most = parse_count(config[which])
    many = f"{most}" if least == most else f"{least} to {most}"
    parts = [f"{many} {NOUNS[which]}" + ("" if most == 1 else "s")]
    if config.get("gpu_model"):
        parts[0] += f" {config['gpu_model']}"
    if config.get("gpu_memory"):
        parts.append(format_size(request_of(config).memory))
    if config.get("time"):
        parts.append(format_duration(parse_duration(config["time"])))
    return ", ".join(parts)


def _name(config: Mapping[str, Any]) -> str:
    text = f"aios-{asks_text(config)}".lower()
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-")


def _manager() -> Any:
    from jupyter_client.kernelspec import KernelSpecManager

    return KernelSpecManager()


def _all() -> dict[str, Any]:
    return dict(_manager().get_all_specs())


def _row(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    spec, path = found["spec"], Path(found["resource_dir"])
    stanza = spec.get("metadata", {}).get("kernel_provisioner", {})
    config = stanza.get("config", {}) if stanza.get("provisioner_name") == PROVISIONER else None
    return {
        "name": name,
        "display_name": spec["display_name"],
        "asks": asks_text(config) if config else "",
        "config": config,
        "path": str(path),
        "own": path.parent == Path(_manager().user_kernel_dir),
    }
