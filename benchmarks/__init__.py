"""Figures on real data, with their seed, versions, threads and machine, beside a peer in the same run.

Nothing here is part of the package: `python -m benchmarks.NAME` from the project's root.
"""
