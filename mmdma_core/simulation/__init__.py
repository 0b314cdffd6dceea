"""Simulated data of the study, bit for bit as published, and fast ones where those would take too long.

The published numbers may not change: records of other machines were measured on them.
"""
