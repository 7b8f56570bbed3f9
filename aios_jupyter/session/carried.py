"""What of a process's environment goes with the code that it starts on a node."""

from __future__ import annotations

from collections.abc import Mapping

# What belongs to the asking process alone and must not reach its ranks.
PRIVATE_ENVIRONMENT = ("JPY_", "AIOS_", "IPYTHON")
# What its ranks share with it all the same.
SHARED_ENVIRONMENT = ("AIOS_KV",)


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go with it."""
    return {
        name: value
        for name, value in environment.items()
        if name in SHARED_ENVIRONMENT or not name.startswith(PRIVATE_ENVIRONMENT)
    }
