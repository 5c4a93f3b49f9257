"""Leaves out the modules that are about Triton itself where Triton is not installed."""

import importlib.util

collect_ignore_glob = []
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob += ["src/*/nanokernels/compile.py", "src/*/nanokernels/interpreter.py"]
    collect_ignore_glob += ["src/*/nanokernels/attention/gluon_forward.py"]
