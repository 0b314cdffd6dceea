"""What a variant costs: operations of an epoch (costs) and bytes (memory), as formulas of n, p and d.

Nothing that computes imports this room but to state a model, and no model is part of a variant's digest, so that a
formula may be made better without measuring anew.
"""
