"""The broker: who gets which device, and when.

Pure, no IO:
    state       decides: events and the time in, actions out; events has the words for both
    leasing     how things begin and end         ledger      what is known
    fleet       devices, and which are free      gang        what happens to a run
    waiting     who waits                        planning    who starts now, with EASY backfill
    policy      the orders                       shares, history   what they go by
    forecast, outlook   when a request will start, and why not yet
    measures    what was asked lately, and how forecasts came true
    capacity    how many devices keep waits short
    deadlines, sortedlist   what is due; a list that stays sorted

Around it:
    journal     keeps what was decided
    plugin      starts service within the Dask scheduler, which listens and keeps the clocks
    hub         turns actions into effects; people, nodes and watchers have the calls
    views       what people see
    protocol, hello, messages   the wire     client      the other end of it
"""
