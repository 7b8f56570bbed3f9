"""Run code under a lease, one process per device."""
