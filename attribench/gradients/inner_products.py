"""Inner products of features: of every train image with every other, of every query with every train image.

They are most of the work of a kernel method, and do not depend on λ. So they are kept beside the features they are of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attribench.computing.cost import measure
from attribench.gradients.feature_set import FeatureSet
from attribench.store.artifacts import Staging
from attribench.store.code import ROOT, source_hash

_KIND = "inner-products"

#: The files that decide them; relative to the package.
DECISIVE = ("gradients/inner_products.py", "gradients/feature_set.py")

#: Larger matrices are made anew every time.
_MOST_BYTES = 2**30


def inner_products(rows: FeatureSet, columns: FeatureSet, device: torch.device) -> Tensor:
    """φ(r)ᵀφ(c) of any two: float64 ``(num_rows, num_columns)`` on ``device``.

    Taken from the store that both sets of features came from, if there is one, and left there.
    """
    if rows.origin is None or columns.origin is None or not kept_bytes(rows.num_samples, columns.num_samples):
        return _multiply(rows, columns, device)

    def build(staging: Staging) -> None:
        with measure(device) as cost:
            products = _multiply(rows, columns, device)
        staging.save_tensors("products", {"products": products})
        staging.note(peak_bytes=cost.peak_bytes)

    spec = {
        "code": source_hash(*(ROOT / name for name in DECISIVE)),
        "rows": rows.origin.chunks,
        "columns": columns.origin.chunks,
        "device": device.type,
    }
    artifact = rows.origin.shared.get_or_create(_KIND, spec, build)
    return artifact.load_tensors("products")["products"].to(device)


def kept_bytes(num_rows: int, num_columns: int) -> int:
    """Bytes of so many inner products in the store; 0 if they are not kept."""
    size = 8 * num_rows * num_columns
    return size if size <= _MOST_BYTES else 0


def _multiply(rows: FeatureSet, columns: FeatureSet, device: torch.device) -> Tensor:
    symmetric = rows is columns
    products = torch.empty(rows.num_samples, columns.num_samples, dtype=torch.float64, device=device)
    top = 0
    for upper in rows.blocks():
        left_operand, left = upper.to(device, torch.float64), 0
        for other in columns.blocks():
            if not symmetric or left >= top:
                product = left_operand @ other.to(device, torch.float64).T
                products[top : top + len(upper), left : left + len(other)] = product
                if symmetric:
                    products[left : left + len(other), top : top + len(upper)] = product.T
            left += len(other)
        top += len(upper)
    return products
