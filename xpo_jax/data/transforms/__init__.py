"""Turns examples into others: conversions of layouts, weights, pairs of steps.

A run names one by `Data.conversion` or `Data.transform`. May be imported where `data`
may be; imports `data` and `types` alone.
"""
