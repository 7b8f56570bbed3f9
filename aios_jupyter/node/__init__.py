"""The agent on each machine.

agent, door       the process, and its port for kernels
hosting           the runs here; ranks, member, output, verdict: one gang, its processes, what they
                  say, and who failed first
starting          a rank anew or from a spare; zygotes, zygote, spares: the warm start
reaper            nothing is left over
telemetry, worker how busy the devices are; the Dask worker beside the agent
"""
