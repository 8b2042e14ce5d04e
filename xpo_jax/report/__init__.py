"""A run as a page: diagnostics, charts, tables, HTML and Markdown.

May be imported from `studies` and the command line; imports everything before it.
"""
