"""The objective of MMD-MA: its settings, its terms, the two formulations, and the float64 reference they are held to.

A change here changes what every variant computes: the reference and the paper decide, not a variant's speed.
"""
