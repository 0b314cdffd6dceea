"""People's files: reading views, labels and matches, and writing embeddings, each in one step.

Every reader runs no code of a file and names the file in its errors; a new format goes into formats.py (arrays),
annotated.py (AnnData, MuData) or tenx.py, and views.py says which is taken. What a command reads and prints are files
too: stdio.py.
"""
