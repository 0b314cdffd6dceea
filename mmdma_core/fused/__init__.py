"""The fast passes: views (embedding, penalty, distortion) and MMD2, on the CPU and on CUDA, and ranks that share a run.

Here speed is the purpose, and the common checks of tests/common.py are the limit: change what is computed in what
order, never the result. `compose` puts a run together. `run` has the run and the protocols of its parts; views_cpu
and pairs_cpu, with its inner loops in pairs_tiles, are Numba, views_cuda and pairs_cuda PyTorch and Triton; fourier has
MMD2 from Fourier features. Nothing of a device is imported before a fused variant starts.
"""
