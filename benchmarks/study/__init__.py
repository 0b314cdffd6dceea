"""From config.yaml to cells: the configuration, the study that it asks for, its sweeps, and the plan of what is left.

A new key goes into config.yaml with its comment, into config.schema.json, and into `study.load`.
"""
