"""What the records say: the table, which variants agree, exponents, comparisons of machines, advice.

Each file turns records or their table into another table or into words, and draws nothing.
"""
