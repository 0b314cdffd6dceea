"""People's files: reading views, labels and matches, and writing embeddings, each in one step.

Every reader runs no code of a file and names the file in its errors; a new format goes into formats.py (arrays) or
views.py (cells with names). The standard streams of a command are files too: streams.py.
"""
