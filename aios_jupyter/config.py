"""One settings object: paths and times, read from the environment once per process.

Every setting has an environment variable `AIOS_<NAME>` in capitals. Times are seconds.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UsageError


@dataclass(frozen=True)
class Settings:
    """What can be set, with defaults.

    Attributes
    ----------
    cluster
        Name of the cluster this process talks to; two names are two clusters.
    idle_timeout
        An embedded cluster stops itself after so long without a session, lease or run.
    heartbeat, suspect_after, reap_after
        A peer speaks at least every `heartbeat`; it is suspect after `suspect_after` of
        silence and its leases end after `reap_after`.
    owner_grace
        How long leases wait for an owner whose connection closed but whose process is not known
        to be dead.
    stop_grace, end_grace
        Between SIGTERM and SIGKILL for ranks: when somebody stops them, and when the time of their
        lease is over, so that they may save what they have.
    warn_before
        How long before its end a lease's session is warned; of short leases after nine tenths.
    idle_grace
        Between the warning of an idle lease and its end, where `aios policy --idle` is set.
    reserve_limit
        Device-hours that a user who is no admin may have reserved at a time.
    zygote_idle
        A node keeps a process with the framework imported, so that runs start at once, until none
        has needed it for so long; 0 turns that off.
    zygote_memory
        How many GB such processes may take on a node, all together.
    zygote_ahead
        Frameworks, as `torch` or `torch,tensorflow`, that a node imports when it starts, for the first
        runs too.
    journal_sync
        SQLite's `synchronous`: `NORMAL` survives a crash of the broker, `FULL` one of the machine.
    policy
        What orders the queue until an admin chooses another: `fifo`, `sjf`, `priority`, `fair`,
        `las` or `gittins`.
    preempt_grace
        Between SIGTERM and SIGKILL for ranks of a lease that is preempted: time for a checkpoint.
    rejoin_grace
        A run that may shrink waits for so long for a node that is down before it is started again
        without.
    grow_after, grow_interval
        A run that may use more devices than it has is started again with more once these have been
        free for `grow_after` (0: never), where it keeps checkpoints and has run for `grow_interval`.
    preempt_after
        For so long the policies `las` and `gittins` let a lease run before they take it.
    simulate_gpus
        Number of simulated GPUs that a new embedded node offers.
    cache_limit
        GiB that copies of remote data and decoded images may take on this machine; what was used
        least recently goes first.
    host
        Address of this machine at which a new cluster listens: loopback, unless nodes or people are
        elsewhere (`aios up --host`).
    tracking
        `on`: runs are told to the MLflow server (or the store on this machine) that has the models;
        `off`: they are not.
    require_signature
        `on`: models are served, opened and exported where somebody known here has signed them.
    signers
        PEM files, or folders of them, with the certificates of authorities and people whose
        signatures on models count, besides those of the cluster in use.
    bundle
        Directory that `aios user add` made on somebody else's cluster, which is used in place of
        one's own.
    """

    cluster: str = "default"
    idle_timeout: float = 1800.0
    heartbeat: float = 5.0
    suspect_after: float = 15.0
    reap_after: float = 60.0
    owner_grace: float = 60.0
    stop_grace: float = 5.0
    end_grace: float = 30.0
    warn_before: float = 300.0
    idle_grace: float = 300.0
    reserve_limit: float = 64.0
    zygote_idle: float = 600.0
    zygote_memory: float = 4.0
    zygote_ahead: str = ""
    journal_sync: str = "NORMAL"
    policy: str = "sjf"
    preempt_grace: float = 30.0
    rejoin_grace: float = 10.0
    grow_after: float = 60.0
    grow_interval: float = 600.0
    preempt_after: float = 60.0
    simulate_gpus: int = 0
    cache_limit: float = 20.0
    host: str = "127.0.0.1"
    tracking: str = "on"
    require_signature: str = "off"
    signers: str = ""
    bundle: str = ""

    @property
    def runtime_dir(self) -> Path:
        """Connection files and TLS material of this user's clusters (mode 0700)."""
        return private(_jupyter("runtime") / "aios")

    @property
    def state_dir(self) -> Path:
        """What must survive a restart: journal, run logs, catalogue, model registry."""
        override = os.environ.get("AIOS_STATE_DIR")
        return private(Path(override) if override else _jupyter("data") / "aios")

    @property
    def cluster_dir(self) -> Path:
        """State of the current cluster: its journal and its runs."""
        return private(self.state_dir / "clusters" / self.cluster)


def _jupyter(which: str) -> Path:
    from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

    return Path(jupyter_runtime_dir() if which == "runtime" else jupyter_data_dir())


def private(path: Path) -> Path:
    """The directory, made where there is none, for this user alone (mode 0700)."""
    path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


@functools.cache
def settings() -> Settings:
    """The settings of this process.

    Raises
    ------
    UsageError
        An `AIOS_…` variable does not parse.
    """
    values: dict[str, Any] = {}
    for field in fields(Settings):
        variable = f"AIOS_{field.name.upper()}"
        text = os.environ.get(variable)
        if text is None:
            continue
        convert: Any = type(getattr(Settings, field.name))
        try:
            values[field.name] = convert(text)
        except ValueError:
            raise UsageError(
                f"{variable}={text!r} is not a valid {convert.__name__}; unset or correct it."
            ) from None
    return Settings(**values)


IS_LINUX = sys.platform.startswith("linux")

# By its own defaults each Dask process wakes 50 to 100 times a second, beside ranks that need the
# cores: three of them took a tenth of one when idle.
QUIET_DASK = {
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "500ms",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
