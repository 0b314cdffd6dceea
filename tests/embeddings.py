"""Random embeddings and matches for the tests of metrics, and the parameters of a fit that trains and no more."""

import numpy as np

# What the paper does, which tests of training rest on: views as they are, random starts, the lowest loss is chosen.
PLAIN = {"preprocess": "none", "scale": False, "l2_normalize": False, "starts": "random", "refine": False}
PLAIN_OPTIONS = ("--preprocess", "none", "--no-scale", "--l2-normalize", "False", "--starts", "random", "--no-refine")


def random_views(n_x, n_y, d=3, seed=0):
    """Two clouds of N(0, 1)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_x, d)), rng.normal(size=(n_y, d))


def partial_match(n_x, n_y, known, seed=0):
    """A random match of `known` cells, -1 for the others of x."""
    rng = np.random.default_rng(seed)
    match = np.full(n_x, -1)
    match[rng.choice(n_x, known, replace=False)] = rng.choice(n_y, known, replace=False)
    return match


X, Y = random_views(5, 4)
MATCH = [3, 0, -1, 2, 1]
