"""Lists what crosses between devices: the collectives of the compiled training step and condensation.

    python -m benchmarks.scaling                            compile, read, print the tables
    python -m benchmarks.scaling --write=docs/SCALING.md    also write them into the document

`programs` compiles for fake CPU devices from shapes alone; `collectives` reads the text of the compiled programs.
"""
