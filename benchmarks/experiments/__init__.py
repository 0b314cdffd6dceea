"""What is measured beside the scaling study: experiments on data of their own, a file or two for each.

An experiment has its key in config.yaml, its command in __main__ and its target in the Snakefile; it measures with the
same guard, and draws its own picture. `gpu-check` does all that a GPU alone can show, one after the other.
"""
