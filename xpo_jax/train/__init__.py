"""Trains: the loop, the step, its state, checkpoints, rollouts, references.

May be imported from `evaluation` onwards; imports everything before it, never what
evaluates or reports a run.
"""
