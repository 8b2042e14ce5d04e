"""The survey as data: its table of papers, the 13 directions, a page per objective.

Imported by the command line and the docs; imports `objectives`, `ops` and `testing`,
never models, data or training.
"""
