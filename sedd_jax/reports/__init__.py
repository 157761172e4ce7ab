"""Reports: runs and their evaluations side by side, as a page, as Markdown and as JSON.

Reads small files that others wrote; knows no networks and no arrays.
"""
