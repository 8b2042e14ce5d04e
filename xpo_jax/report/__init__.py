"""Reports runs: diagnostics, charts, tables, as HTML and Markdown.

May be imported from `studies` and the command line; imports everything before it.
"""
