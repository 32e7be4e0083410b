"""torch, when it is first used: recipes are read, checked and refused without waiting for it.

Modules that define parts take `torch` and `Tensor` from here; those that only compute import torch itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    from torch import Tensor as Tensor
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            found = getattr(import_module("torch"), name)
            setattr(self, name, found)
            return found

    torch, Tensor = _Torch(), Any
