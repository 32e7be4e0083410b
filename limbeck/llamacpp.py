"""llama.cpp's own quantiser, for the mixtures that it alone knows: K-quants.

It is `llama-quantize` on the PATH, or the Python package llama-cpp-python: in our own environment, or in that of the interpreter that
$LIMBECK_LLAMACPP names.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from limbeck.errors import LimbeckError, ModelError

MIXTURES = {"q2_k": "Q2_K", "q3_k_s": "Q3_K_S", "q3_k_m": "Q3_K_M", "q3_k_l": "Q3_K_L", "q4_k_s": "Q4_K_S", "q4_k_m": "Q4_K_M", "q5_k_s": "Q5_K_S",
            "q5_k_m": "Q5_K_M", "q6_k": "Q6_K"}  # fmt: skip
"""What llama.cpp quantises, and its own names."""
GET = "put llama.cpp's llama-quantize on the PATH, pip install 'limbeck[llamacpp]', or give --quantize q8_0, which needs neither"
CALL = """
import ctypes, sys
import llama_cpp as library
settings = library.llama_model_quantize_default_params()
settings.ftype, settings.nthread = getattr(library, "LLAMA_FTYPE_MOSTLY_" + sys.argv[3]), 1
sys.exit(library.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(settings)))
"""
"""In a process of its own: what goes wrong in there ends that process alone."""


def command() -> list[str] | None:
    """What quantises when it is given two files and a mixture; None where there is nothing that does."""
    if tool := shutil.which("llama-quantize"):
        return [tool]
    named = os.environ.get("LIMBECK_LLAMACPP")
    if named or importlib.util.find_spec("llama_cpp"):
        return [named or sys.executable, "-c", CALL]
    return None


def see_quantiser(kind: str) -> list[str]:
    """The same. Raises ModelError where there is none."""
    if found := command():
        return found
    raise ModelError(f"{kind} was asked for, a mixture that llama.cpp makes, and it is not here; {GET}")


def quantise(whole: Path, file: Path, kind: str) -> None:
    """Make `file` of a GGUF file in floats. Raises LimbeckError where llama.cpp cannot."""
    asked = [*see_quantiser(kind), str(whole), str(file), MIXTURES[kind]]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise LimbeckError(f"{asked[0]} cannot be run ({error.strerror}); {GET}") from None
    if done.returncode or not file.exists():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["it said nothing"]
        told = [line for line in lines if "error" in line.lower() or "fail" in line.lower()] or lines
        raise LimbeckError(f"llama.cpp cannot make {kind} ({told[-1].strip()[:200]}); give another --quantize, or a newer llama.cpp")
