"""Measures policies, reward models and judges, with bootstrap intervals.

May be imported from `report` onwards; imports what trains, never what reports.
"""
