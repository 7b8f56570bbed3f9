"""Run code under a lease, one process per device.

spec, messages    what a run is told, and the calls between kernel and agent
launcher          the caller's end: start, follow, stop, fetch
cells, names      what a cell reads, and what is sent with it
rank, torch       within a rank: set up, run, report; events, lifeline: its channel, and its end
"""
