"""Loaded first by the server that forks the nights of the trials: FAISS alone scans there.

Compiled kernels are loaded anew by every process, for seconds, and change nothing of what is tried here.
"""

import sys

sys.modules["numba"] = None  # type: ignore[assignment]
