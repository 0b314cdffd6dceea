"""The published study, and a machine set against it: runtimes, the fastest variant, where memory ends.

The published numbers are data of results/published-v100, or stand here with their place in the paper; nothing here
draws.
"""
