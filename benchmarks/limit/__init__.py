"""How near the pass over pairs comes to what this machine could do, from counted operations and measured rates.

`python -m benchmarks.limit`; gpu-check takes its times of tiles and of blocks, and how products round.
"""
