"""Errors of a variant that cannot run, and how messages tell that memory ran out."""

import re
import traceback


class MissingDependency(ImportError):
    """Raised where something that a variant requires is absent; the message says what to install."""


class Unsupported(ValueError):
    """Raised where a variant cannot treat a problem, for a reason other than memory; the message says which."""


# Words for memory that ran out: of Python, NumPy and CuPy; PyTorch on the CPU and on CUDA; the driver and the
# runtime of CUDA by the names of their errors; CUDA's libraries, which allocate as they are initialised, and fail then
# in words of their own; NCCL; Triton; TensorFlow; JAX; C++ and its compiler.
OUT_OF_MEMORY = re.compile(
    r"^(\[rank\d+\]: ?)?[\w.]*(OutOf)?MemoryError\b"
    r"|(can't allocate|not enough) memory: you tried to allocate|\[Errno 12\] Cannot allocate memory"
    r"|CUDA out of memory\. Tried to allocate|CUDA (driver )?error: out of memory|failed with error .*out of memory"
    r"|(CUDA|NVRTC)_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|CU[A-Z]+_(STATUS_)?(\w+_)?ALLOC(ATION)?_FAILED|CUSPARSE_STATUS_INSUFFICIENT_RESOURCES"
    r"|CUDA error: (resource allocation failed|insufficient resources) when calling `cusparse"
    r"|CUDA error: initialization error when calling `cusparseCreate\b"
    r"|_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR),? when calling `cu(blas|solver|sparse)\w*Create\b"
    r"|gpu(blas|solver|sparse)\w*Create\(\S*\) failed|(cuSolver|cuBlas) allocation failed"
    r"|Cuda failure (\d+ )?'out of memory'"
    r"|Triton Error \[\w+\]: out of memory"
    r"|^[\w.]*ResourceExhaustedError\b|OOM when allocating tensor|Dst tensor is not initialized"
    r"|RESOURCE_EXHAUSTED: (Out of memory|Failed to allocate)"
    r"|std::bad_alloc|\bcc1(plus)?: .*(out of memory|annot allocate memory)|^virtual memory exhausted",
    re.MULTILINE,
)


def words_of(error: BaseException | None) -> str:
    """Return the words of an exception, after those of what it came from; without the code that raised them."""
    if error is None:
        return ""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return words_of(before) + "".join(traceback.format_exception_only(error))
