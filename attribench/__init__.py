"""attribench: which training images shaped a diffusion model's output, and which method to trust for the answer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribench.data import AttributionDataModule as AttributionDataModule
    from attribench.data import ImageSet as ImageSet
    from attribench.errors import AttribenchError as AttribenchError
    from attribench.method import Access as Access
    from attribench.method import AttributionContext as AttributionContext
    from attribench.method import AttributionMethod as AttributionMethod
    from attribench.method import Match as Match
    from attribench.method import Queries as Queries
    from attribench.method import SpatialEvidence as SpatialEvidence
    from attribench.registry import list_methods as list_methods
    from attribench.registry import load_method as load_method
    from attribench.registry import register_datamodule as register_datamodule
    from attribench.registry import register_method as register_method

    __version__: str

# Resolved on first use, so that `import attribench` and `attribench --help` do not wait for torch.
_EXPORTS = {
    "Access": "attribench.method",
    "AttribenchError": "attribench.errors",
    "AttributionContext": "attribench.method",
    "AttributionDataModule": "attribench.data",
    "AttributionMethod": "attribench.method",
    "ImageSet": "attribench.data",
    "Match": "attribench.method",
    "Queries": "attribench.method",
    "SpatialEvidence": "attribench.method",
    "list_methods": "attribench.registry",
    "load_method": "attribench.registry",
    "register_datamodule": "attribench.registry",
    "register_method": "attribench.registry",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attribench")
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'attribench' has no attribute {name!r}")
