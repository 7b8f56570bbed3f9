"""`forecast`: how many devices keep waits short."""

from __future__ import annotations

import math
import time as clock
from typing import Any

import msgspec

from ..broker import capacity
from ..broker.events import Hour
from ..errors import UsageError
from ..units import format_duration, parse_duration
from .link import Link

MOST_PER_HOUR = 1e6


class ForecastVerbs(Link):
    """A session that looks ahead."""

    def forecast(
        self,
        target_wait: str | float = "5m",
        *,
        quantile: str = "mean",
        arrivals: float | None = None,
        length: str | float | None = None,
        devices: int | None = None,
        cpus: bool = False,
    ) -> dict[str, Any]:
        """How many devices hold the wait under a target, and what it is with other numbers.

        The model is M/M/c (Erlang C) with the arrivals and lengths of the last week;
        `broker/capacity.py` says how gangs are counted. It knows no policy: waits of all requests
        together.

        Parameters
        ----------
        target_wait
            The wait to stay under, "5m" or seconds.
        quantile
            `mean`, or `p95`: 95% of the requests wait for no longer.
        arrivals, length
            What if so many requests for one device came in an hour, with leases of that length;
            one left out is taken from what was seen.
        devices
            What if there were so many.
        cpus
            CPU slots, also where there are accelerators.

        Returns
        -------
        dict
            `pool`, `devices`, `target` (s), `quantile`; the load: `arrivals` an hour, `length` (s),
            `gang`, `offered` (devices); `now` and `rows`, each with `devices`, `busy`, `delayed`,
            `mean`, `p95` (s, None: the queue grows for ever) and whether it `holds`; `needed`
            devices, `needed_busiest` in the busiest hour; `observed` (`span`, `requests`, `leases`,
            `waited`, `enough`); `accuracy` of the times that requests were told; `note`.

        Raises
        ------
        UsageError
            A number makes no sense, or no lease has ended yet and none were described.
        """
        target = parse_duration(target_wait)
        pools = self._call("load")
        name = "cpu" if cpus or not pools["accelerator"]["devices"] else "accelerator"
        found = pools[name]
        count = found["devices"] if devices is None else devices
        if count < 1:
            raise UsageError(f"{count} is not a number of devices; give --devices N, at least 1.")
        seen = capacity.observed(msgspec.convert(found["hours"], list[Hour]), clock.time())
        load = _load(seen, arrivals, None if length is None else parse_duration(length))
        aim = capacity.needed(load, target, quantile)
        busiest = seen.busiest if arrivals is None and length is None else None
        return {
            "pool": name,
            "devices": count,
            "target": target,
            "quantile": quantile,
            "arrivals": load.rate * 3600,
            "length": load.seconds,
            "gang": load.gang,
            "offered": load.offered,
            "now": _row(capacity.wait(load, count), target, quantile),
            "rows": [_row(one, target, quantile) for one in capacity.around(load, count, aim)],
            "needed": aim,
            "needed_busiest": capacity.needed(busiest, target, quantile) if busiest else None,
            "observed": {
                "span": seen.span,
                "requests": seen.requests,
                "leases": seen.leases,
                "waited": seen.waited,
                "enough": seen.enough,
            },
            "accuracy": found["accuracy"],
            "note": _note(seen, arrivals is not None and length is not None),
        }

    def forecast_accuracy(self) -> dict[str, Any] | None:
        """How times that requests for accelerators (or slots, where there are none) were told
        came true; None before the first.
        """
        pools: dict[str, Any] = self._call("load")
        for pool in pools.values():
            if pool["accuracy"]:
                return dict(pool["accuracy"])
        return None


def _load(seen: capacity.Observed, arrivals: float | None, length: float | None) -> capacity.Load:
    if arrivals is not None and not 0 < arrivals <= MOST_PER_HOUR:
        raise UsageError(
            f"{arrivals:g} is not a number of requests an hour; give one above 0, up to a million."
        )
    if arrivals is not None and length is not None:
        return capacity.load_of(arrivals / 3600, length)
    if seen.load is None:
        raise UsageError(
            f"No rates are known yet ({seen.requests} requests came, {seen.leases} leases ended); "
            "describe them with --arrivals PER_HOUR --length TIME."
        )
    if arrivals is None and length is None:
        return seen.load
    rate = seen.load.rate if arrivals is None else arrivals / 3600
    return capacity.load_of(rate, seen.load.seconds if length is None else length, seen.load.gang)


def _note(seen: capacity.Observed, given: bool) -> str:
    if given:
        return "For the rates given, not those seen."
    span = format_duration(seen.span)
    if not seen.enough:
        return f"A guess: only {seen.leases} leases have ended, in {span}."
    return f"From {seen.requests} requests and {seen.leases} leases that ended, in {span}."


def _row(wait: capacity.Wait, target: float, quantile: str) -> dict[str, Any]:
    return {
        "devices": wait.devices,
        "busy": wait.busy,
        "delayed": wait.delayed,
        "mean": wait.mean if math.isfinite(wait.mean) else None,
        "p95": wait.p95 if math.isfinite(wait.p95) else None,
        "holds": wait.of(quantile) <= target,
    }
