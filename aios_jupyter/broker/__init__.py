"""The broker: who gets which device, and when.

`state.py` decides: events and the time in, actions out. Below it, `leasing.py` has the rules by
which things begin and end, `ledger.py` what is known, `fleet.py` which devices there are and which
are free, `policy.py` who is next and where, `gang.py` what happens to a run, `deadlines.py` what is
due, and `events.py` the words for all that; none of them does any IO. `journal.py` keeps what was
decided. `plugin.py` starts `service.py` within the Dask scheduler; it listens, and `hub.py`,
`people.py`, `nodes.py` and `watchers.py` carry out what was decided. `protocol.py` and
`messages.py` are the wire, `client.py` is the other end of it.
"""
