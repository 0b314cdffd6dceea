"""People's files: reading views, labels and matches, and writing embeddings, each in one step.

Every reader runs no code of a file and names the file in its errors. A new format goes into formats.py (arrays),
tables.py (text), annotated.py (AnnData, MuData) or tenx.py, or into a file beside them; views.py says which is taken.
What a command reads and prints are files too: stdio.py.
"""
