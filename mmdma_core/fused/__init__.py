"""The fast exact pass: views (embedding, penalty, distortion) and pairs (MMD2), on the CPU and on CUDA.

Here speed is the purpose, and the common checks of tests/common.py are the limit: change what is computed in what
order, never what comes out. `run` composes; views_cpu and pairs_cpu, with its inner loops in pairs_tiles, are Numba,
views_cuda and pairs_cuda PyTorch and Triton; nothing here is imported before a fused variant starts.
"""
