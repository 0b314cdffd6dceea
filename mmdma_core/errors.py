"""What is raised where a variant cannot run; every room may import this file, and it imports none."""


class MissingDependency(ImportError):
    """What a variant requires is not there; the message says what to install."""


class Unsupported(ValueError):
    """A variant cannot treat this problem, for a reason other than memory; the message says which."""
