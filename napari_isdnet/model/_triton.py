"""Triton beside an open window: load it so that it uses its own LLVM.

CUDA builds of torch bring triton, which torchvision imports through ``torch._dynamo``. It carries an LLVM; so do Mesa's
drivers (software rendering, some AMD cards), which put theirs into the global namespace of symbols once a window was
drawn. Loaded after that in the usual way, triton calls Mesa's LLVM and the process dies (seen with triton 3.7 and
Mesa 22.3).
"""

from __future__ import annotations

import importlib
import os
import sys


def load_triton() -> None:
    """Import triton, where it is installed, with a preference for its own symbols; once, and never an error."""
    own = getattr(os, "RTLD_DEEPBIND", None)  # glibc only
    if own is None or "triton" in sys.modules:
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | own)
    try:
        importlib.import_module("triton")  # a dependency of torch where it has one, never of this package
    except Exception:  # what is damaged or missing is torch's to say, if it ever needs it
        pass
    finally:
        sys.setdlopenflags(flags)
