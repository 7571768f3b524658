"""Measures how fast kcd_jax is on this machine, and compares each number with its target.

    python -m benchmarks                          every group that this machine can measure (about 15 minutes)
    python -m benchmarks --rows=step,methods      some groups
    python -m benchmarks --quick                  smaller sizes and fewer repeats: a few minutes, for orientation only
    python -m benchmarks --json=bench.json        also write the numbers to a file
    python -m benchmarks --show=bench.json        print such a file as Markdown; nothing is measured

Programs that are compared are called in turn within one process, because the speed of a shared machine varies:
differences under 10 % mean nothing. `python -m benchmarks.scaling` lists the collectives of the compiled programs.
"""
