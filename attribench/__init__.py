"""attribench: which training images shaped a diffusion model's output, and which method to trust for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lazy_loader

if TYPE_CHECKING:
    from attribench.api import Attribution as Attribution
    from attribench.api import Evaluation as Evaluation
    from attribench.api import attribute as attribute
    from attribench.api import evaluate as evaluate
    from attribench.computing.seeding import derive_seed as derive_seed
    from attribench.data import AttributionDataModule as AttributionDataModule
    from attribench.data import ImageSet as ImageSet
    from attribench.errors import AttribenchError as AttribenchError
    from attribench.method import Access as Access
    from attribench.method import AttributionContext as AttributionContext
    from attribench.method import AttributionMethod as AttributionMethod
    from attribench.method import Match as Match
    from attribench.method import Queries as Queries
    from attribench.method import Sampling as Sampling
    from attribench.method import SpatialEvidence as SpatialEvidence
    from attribench.registry import list_methods as list_methods
    from attribench.registry import load_method as load_method
    from attribench.registry import register_datamodule as register_datamodule
    from attribench.registry import register_method as register_method

    __version__: str

# Resolved on first use, so that `import attribench` and `attribench --help` do not wait for torch.
_exported, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "api": ["Attribution", "Evaluation", "attribute", "evaluate"],
        "computing.seeding": ["derive_seed"],
        "data": ["AttributionDataModule", "ImageSet"],
        "errors": ["AttribenchError"],
        "method": [
            "Access",
            "AttributionContext",
            "AttributionMethod",
            "Match",
            "Queries",
            "Sampling",
            "SpatialEvidence",
        ],
        "registry": ["list_methods", "load_method", "register_datamodule", "register_method"],
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attribench")
    return _exported(name)
