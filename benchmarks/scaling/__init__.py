"""What crosses between devices, read from compiled programs, and what it costs on paper on more of them.

    python -m benchmarks.scaling --json=results/scaling.json --write=docs/SCALING.md

`collectives` reads the programs, `programs` compiles the training step and the condensation for fake devices from
shapes alone, `paper` turns bytes into seconds on links that are named.
"""
