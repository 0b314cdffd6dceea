"""A measurement: its child process (guard, measurement), probes (memory, machine), and its record (records).

A change of how it is made raises `measurement.MEASUREMENT`, so that no older record is taken for a new one.
"""
