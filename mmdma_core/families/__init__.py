"""The variants that come with the project; importing this package registers them."""

from mmdma_core.families import paper  # noqa: F401
