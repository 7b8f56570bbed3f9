"""`start`, `train`, `attach`, `runs`, `logs`, `stacks`, `profile`, `stop`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..broker.messages import ById
from ..config import settings
from ..errors import AiosError, NotFoundError, RunError, UsageError
from ..runs.handle import RunHandle, RunResult
from ..runs.messages import Inspect, RankStacks
from ..runs.packed import Packed
from ..runs.postmortem import sounds_secret
from ..runs.spec import COMPRESSIONS, Entry, RunSpec, Tracking, row_of
from ..schema import Lease, Run, RunKind, Scope
from ..units import parse_count
from .batch import BATCH
from .carried import carried
from .leases import LeaseVerbs

LONGEST_PARAM = 250
Looked = tuple[RankStacks, ...]


class RunVerbs(LeaseVerbs):
    """A session that runs code under its leases."""

    def start(
        self,
        target: str | Path | Callable[..., Any],
        *args: Any,
        cell: bool = False,
        module: bool = False,
        kind: RunKind = RunKind.TRAIN,
        filename: str = "",
        argv: Sequence[str] = (),
        kwargs: dict[str, Any] | None = None,
        devices: int | str | None = None,
        gpus: int | str | None = None,
        lease: str | None = None,
        detach: bool = False,
        framework: str = "auto",
        push: dict[str, Any] | None = None,
        explicit: Sequence[str] = (),
        pull: Sequence[str] = (),
        max_restarts: int = 0,
        checkpoints: str = "",
        resume: str = "",
        profile: Literal["", "first", "all"] = "",
        compress: Literal["none", "fp16", "bf16", "powersgd"] = "none",
        name: str = "",
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
        on_wait: Callable[[dict[str, Any]], None] | None = None,
        queue: str = "",
        preemptible: bool = False,
        memory: str | int | None = None,
        model: str = "",
        share: bool = False,
        placement: str = "",
        node: str = "",
        cpus_per_device: int = 0,
        memory_per_device: str | int | None = None,
        time: str | float | None = None,
    ) -> RunHandle:
        """Start code on every device of a lease, one rank each, and return at once.

        Parameters
        ----------
        target
            The source of a cell (`cell=True`), a module's name (`module=True`), a script's path, or
            a function that is called with `args` and `kwargs` in every rank.
        devices, gpus, lease
            Where: a lease by id; else the one held; else one for this run alone, given back at its
            end.
        queue, preemptible, memory, model, share, placement, node, cpus_per_device,
        memory_per_device, time
            As for `alloc`: with any of them a lease is taken for this run alone, whatever is held.
            It ends with the run: one that was preempted says so, and is started again by whoever
            wants it.
        detach
            Give the run a lease of its own with which it outlives this session; `attach` follows
            it from any other.
        framework
            `torch`, `tensorflow`, `horovod` or `none`; `auto` looks at what the code imports.
        push
            Names and values for the cell. `explicit` are those that the user has named.
        pull
            Names to bring back from rank 0.
        max_restarts
            How often all ranks are started again when one has failed; `train.restore` in the code
            goes on from the last checkpoint.
        checkpoints
            Where checkpoints go: a folder, or a URL of fsspec that all nodes can write to.
        resume
            A run of this user whose checkpoints this one goes on with.
        profile
            `first` profiles ten optimizer steps of rank 0 with torch's profiler, `all` those of
            every rank: a table in the log, and a trace for `Session.profile`.
        compress
            How the gradients of torch's DDP travel between ranks: halved as `fp16` or `bf16`, or as
            matrices of rank 1 after 100 steps (`powersgd`).

        Raises
        ------
        UsageError
            The code does not parse, or a value cannot be pushed.
        """
        from ..runs import cells, horovod

        entry, source = _entry(target, cell, module)
        text = source if entry is Entry.CELL else _text(entry, source)
        if framework == "auto":
            used = {"function": target} if entry is Entry.FUNCTION else dict(push or {})
            framework = cells.detect_framework(text, used)
        if framework == "horovod":
            # Before anybody waits for devices.
            horovod.check()
        _check_compress(compress, framework)
        payload = None
        if entry is Entry.FUNCTION:
            function = {"__aios_function__": target, "__aios_args__": (args, dict(kwargs or {}))}
            payload = cells.pack(function, set(function))
        elif push:
            payload = cells.pack(dict(push), set(explicit))
        want = {"gpus": gpus} if gpus is not None else {"devices": devices}
        asked = {
            "queue": queue,
            "preemptible": preemptible,
            "memory": memory,
            "model": model,
            "share": share,
            "placement": placement,
            "node": node,
            "cpus_per_device": cpus_per_device,
            "memory_per_device": memory_per_device,
        }
        how: dict[str, Any] = {key: value for key, value in asked.items() if value}
        if time is not None:
            how["time"] = time
        if detach and lease is None:
            held = self.alloc(
                **(want if any(want.values()) else {"devices": 1}),
                label=name or self.label,
                on_wait=on_wait,
                scope=Scope.DETACHED,
                **how,
            )
        else:
            held = self._lease_for_run(lease, want, on_wait, own=bool(how), **how)
        count = devices if gpus is None else gpus
        world = len(held.slots) if count is None else parse_count(count)[1]
        spec = RunSpec(
            id=f"r-{secrets.token_hex(4)}",
            lease=held.id,
            kind=kind,
            name=name or _name(entry, target, source),
            entry=entry,
            source=source,
            filename=filename or (source if entry is Entry.SCRIPT else ""),
            argv=tuple(argv),
            cwd=str(cwd or Path.cwd()),
            env=carried(os.environ) | (env or {}),
            python=sys.executable,
            framework=framework,
            pull=(cells.RESULT,) if entry is Entry.FUNCTION else tuple(pull),
            world_size=min(world, len(held.slots)),
            grace=settings().stop_grace,
            max_restarts=max_restarts,
            checkpoints=_place(checkpoints),
            resume=resume,
            profile=profile,
            tracking=self._tracking(kind, text, argv, {**(push or {}), **(kwargs or {})}),
            compress="" if compress == "none" else compress,
        )
        try:
            return self._launch(held, spec, payload)
        except BaseException:
            # Also an interrupt on the way: nothing may run that nobody holds a handle of.
            with contextlib.suppress(AiosError):
                self.stop(spec.id)
            if held.scope not in (Scope.SESSION, Scope.RESERVED):
                # It may have ended with the run already.
                with contextlib.suppress(NotFoundError):
                    self.release(held.id)
            raise

    def _tracking(
        self, kind: RunKind, text: str, argv: Sequence[str], given: dict[str, Any]
    ) -> Tracking | None:
        """What is recorded of a run: plain values that it was given, and where it comes from."""
        if settings().tracking != "on" or kind in (RunKind.ENDPOINT, RunKind.REPLICAS):
            return None
        from ..models.store import registry_uri

        plain = {
            name: str(value)
            for name, value in given.items()
            if isinstance(value, bool | int | float | str) and not sounds_secret(name)
        }
        params = {name: value for name, value in plain.items() if len(value) <= LONGEST_PARAM}
        if argv and not any(map(sounds_secret, argv)):
            params["args"] = " ".join(argv)[:LONGEST_PARAM]
        digest = hashlib.sha256(text.encode()).hexdigest() if text else ""
        return Tracking(
            uri=registry_uri(),
            state=str(settings().state_dir),
            params=params,
            tags={"notebook": self.label, "source": digest},
        )

    def _launch(self, lease: Lease, spec: RunSpec, payload: Packed | None) -> RunHandle:
        run = row_of(spec, self.label)
        client, launcher = self.client, self._launcher
        assert launcher is not None

        async def launch() -> Any:
            token = client.tokens.get(lease.id) or (await client.token(lease.id)).token
            return await launcher.start(lease, token, spec, run, payload)

        return RunHandle(self._loop.run(launch()), self._loop.run)

    def train(self, target: Any, *args: Any, **options: Any) -> RunResult:
        """`start` and wait; an interrupt stops the run.

        One with `max_restarts` whose lease is preempted waits for devices again and goes on from its
        last checkpoint.

        Raises
        ------
        RunError
            A rank failed; carries its traceback.
        """
        while True:
            handle = self.start(target, *args, **options)
            try:
                return handle.wait()
            except KeyboardInterrupt:
                handle.stop()
                raise
            except RunError as error:
                options = self.go_on_after(error, options)

    def go_on_after(self, error: RunError, options: dict[str, Any]) -> dict[str, Any]:
        """What `start` is given so that a run goes on that was preempted, once it can.

        Waits for the devices where the lease was the session's, whose request waits again; of other
        leases `start` takes a new one. `options` are what the run was started with.

        Raises
        ------
        RunError
            The same one: the run was not preempted, or was not to be restarted.
        AllocationError
            The request has ended meanwhile.
        """
        if not error.preempted or not options.get("max_restarts"):
            raise error
        options = dict(options)
        if not options.get("checkpoints"):
            options["resume"] = options.get("resume") or error.run
        before = self._preempted_lease(error.preempted)
        if before is not None and before.scope is Scope.SESSION:
            options["lease"] = self.again(before).id
        return options

    def _preempted_lease(self, identity: str) -> Lease | None:
        """A lease that was this session's. Its runs end before it does."""
        with contextlib.suppress(NotFoundError):
            ending: Lease = self._call("lease.get", ById(id=identity), Lease)
            return ending
        return self.preempted.get(identity)

    def attach(self, run: str, *, wait: bool = True) -> RunHandle:
        """Follow a run of this user that another kernel or shell has started.

        Without `wait` its events end with what there is now.
        """
        found, addresses = self._located(run)
        assert self._launcher is not None
        live = self._loop.run(self._launcher.attach(found, addresses, wait=wait))
        return RunHandle(live, self._loop.run, ours=False)

    def runs(self) -> list[dict[str, Any]]:
        """Runs, newest first."""
        rows = self.status()["runs"].values()
        return sorted(rows, key=lambda row: row["started"], reverse=True)

    def logs(self, run: str, rank: int | None = None, follow: bool = False) -> Iterator[str]:
        """The complete log of a run, piece by piece, of one rank or of all.

        With `follow` it goes on until the run has ended.
        """
        for event in self.attach(run, wait=follow).events():
            if event["type"] == "log" and rank in (None, event["rank"]):
                yield event["text"]

    def stacks(self, run: str, rank: int | None = None) -> list[RankStacks]:
        """What the ranks of a run are doing now; of a run that is over, where they failed.

        The first are the Python stacks of all threads, also of a rank that is stuck in native code.
        The second are the frames of each rank that raised, with their variables.

        Raises
        ------
        NotFoundError
            There is no such rank at work, and none that raised.
        """
        found, addresses = self._located(run)
        body = Inspect(run=run, rank=-1 if rank is None else rank)
        assert self._launcher is not None
        answers = self._loop.run(self._launcher.ask(addresses, "run.stacks", body, Looked, 30))
        ranks = sorted((r for answer in answers for r in answer), key=lambda r: r.rank)
        if not ranks:
            which = "no rank" if rank is None else f"no rank {rank}"
            raise NotFoundError(
                f"Run {run} has {which} at work and {which} that raised; it is "
                f"{found.state.value}: see 'aios logs {run}'."
            )
        return ranks

    def profile(self, run: str, to: str | Path, rank: int = 0) -> Path:
        """Fetch the trace of a run that was profiled, for chrome://tracing or ui.perfetto.dev.

        Raises
        ------
        NotFoundError
            There is none (yet).
        """
        name = f"profile-{rank}.json"
        _, addresses = self._located(run)
        path = Path(to).expanduser()
        launcher = self._launcher
        assert launcher is not None
        for address in addresses:
            with contextlib.suppress(NotFoundError):
                path.write_bytes(self._loop.run(launcher.read(address, run, name)))
                return path
        raise NotFoundError(
            f"Run {run} has no profile of rank {rank}; it is there after some 15 optimizer steps of "
            "a run that was started with --profile."
        )

    def _located(self, run: str) -> tuple[Run, list[str]]:
        """A run, and the addresses of its nodes that are there."""
        found: Run = self._call("run.get", ById(id=run), Run)
        nodes = self.status()["nodes"]
        on = (*found.past, *found.nodes)
        return found, [nodes[node]["address"] for node in on if node in nodes]

    def stop(self, run: str) -> None:
        """End a run, or a batch by its id, from any kernel or shell of its owner."""
        self._call("batch.stop" if run.startswith(BATCH) else "run.stop", ById(id=run))


def _entry(target: Any, cell: bool, module: bool) -> tuple[Entry, str]:
    if cell:
        return Entry.CELL, str(target)
    if module:
        return Entry.MODULE, str(target)
    if callable(target):
        return Entry.FUNCTION, ""
    path = Path(target).expanduser().absolute()
    if not path.is_file():
        raise NotFoundError(f"There is no script {str(target)!r}; give the path of a Python file.")
    return Entry.SCRIPT, str(path)


def _text(entry: Entry, source: str) -> str:
    return Path(source).read_text() if entry is Entry.SCRIPT else ""


def _name(entry: Entry, target: Any, source: str) -> str:
    if entry is Entry.FUNCTION:
        return str(getattr(target, "__name__", "function"))
    if entry is Entry.CELL:
        return "cell"
    return Path(source).name


def _check_compress(compress: str, framework: str) -> None:
    if compress == "none":
        return
    if compress not in COMPRESSIONS:
        raise UsageError(
            f"Gradients cannot be compressed as '{compress}'; give none, {', '.join(COMPRESSIONS)}."
        )
    if framework != "torch":
        raise UsageError(
            f"--compress is for torch's DistributedDataParallel, and this code uses "
            f"{'no framework that is known' if framework == 'none' else framework}; leave it out, or "
            "say --framework torch."
        )


def _place(checkpoints: str) -> str:
    """A folder without a scheme is one of this process's, wherever the ranks are."""
    if not checkpoints or "://" in checkpoints:
        return checkpoints
    return str(Path(checkpoints).expanduser().absolute())
