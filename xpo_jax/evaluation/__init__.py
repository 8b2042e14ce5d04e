"""Measures of a policy, a reward model and a judge, with bootstrap intervals.

May be imported from `report` onwards; imports what trains, never what draws.
"""
