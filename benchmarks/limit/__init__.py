"""How near the pass over pairs comes to what this machine could do, from counted operations and measured rates.

`python -m benchmarks.limit`; nothing else imports this room.
"""
