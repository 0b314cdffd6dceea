"""What Python imports at its start, in every process of a test's cluster: GPUs of stand-ins, once a study is loaded."""

import importlib.abc
import sys


class _BeforeStudies(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "benchmarks.study":
            sys.meta_path.remove(self)
            import fake_gpus  # noqa: F401


sys.meta_path.insert(0, _BeforeStudies())
