"""Compiles a run for a slice of accelerators that is not there, and reads the result.

`programs` makes the programs of an experiment as the trainer would, `slices` the
devices they are compiled for; `hlo` and `flops` count what they compute, and `check`
reports it. May be imported by `studies` and the command line; imports `train` and all
below it.
"""
