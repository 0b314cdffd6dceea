"""From gradients to a trained run: what a run is, the one Adam, and epochs with history, stopping and checkpoints.

The harness times `Run.step` and knows nothing else of a run; a variant with an optimiser of its own is a Run, too.
"""
