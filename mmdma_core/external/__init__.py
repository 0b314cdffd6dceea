"""The implementations of others, run as they are: the published package and the original of 2019."""
