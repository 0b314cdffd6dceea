"""One cell, measured: its child process (guard, cell), probes (memory, machine), and what is kept of it (records).

A change of how a cell is measured raises `cell.MEASUREMENT`, so that no older record is taken for a new one.
"""
