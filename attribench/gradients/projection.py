"""Random projections of gradients, by trak's projectors, in bounded memory."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from attribench.errors import AttribenchError, UsageError, nearest

ProjectionName = Literal["auto", "cuda", "basic", "identity", "factored"]

#: ``auto`` leaves gradients as they are up to so many times the projected dimension.
IDENTITY_FACTOR = 16

#: Bytes of the random matrix that are held at a time. All of it is 4 · parameters · proj_dim bytes: hundreds of
#: gigabytes, or terabytes, for a common network.
_MATRIX_BYTES = 512 * 2**20

#: Rows the CUDA kernel takes at a time. trak's kernels exist for 8, 16 and 32, and count entries with 32 bits.
_CUDA_ROWS = 32


class Projector(Protocol):
    """What trak's projectors have in common."""

    def project(self, grads: Tensor, model_id: int) -> Tensor: ...


def check_projection(name: str, dim: int) -> None:
    """Refuse a projection that does not exist.

    Raises:
        UsageError: there is none of that name or dimension.
    """
    known = get_args(ProjectionName)
    if name not in known:
        raise UsageError(f"Unknown projection {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    if dim < 1:
        raise UsageError(f"proj_dim must be at least 1; got {dim}.")


class Projection:
    """A linear map of gradients, the same for every sample and checkpoint.

    ``identity`` keeps the gradients; ``basic`` multiplies by a Gaussian matrix made anew, block of columns by block, at
    every call; ``cuda`` does so in a kernel of its own, which needs an NVIDIA GPU and ``pip install traker[fast]``.
    ``auto`` is ``identity`` for at most :data:`IDENTITY_FACTOR` · ``dim`` parameters (a projection only approximates the
    inner products, and making its matrix would cost more than the few larger features), else ``cuda`` where it works,
    else ``basic``. Entries of the matrix have variance 1: features are √dim times as long as gradients. ``factored`` is
    :class:`attribench.gradients.factored.FactoredProjection`, which is not made here.

    Args:
        name: which one.
        num_parameters: length of a gradient.
        dim: length of a projected gradient; ``identity`` has no use for it.
        seed: of the random matrix.
        device: where gradients lie.

    Raises:
        UsageError: an argument makes no sense.
        AttribenchError: ``cuda`` was asked for and does not work here.
    """

    def __init__(self, name: ProjectionName, num_parameters: int, dim: int, seed: int, device: torch.device) -> None:
        check_projection(name, dim)
        self._num_parameters, self._seed, self._device = num_parameters, seed, device
        self._projector: Projector | None = None
        self.name = self._resolve(name, dim)
        self.dim = num_parameters if self.name == "identity" else dim
        self._block = min(dim, max(1, _MATRIX_BYTES // (4 * num_parameters)))

    @property
    def spec(self) -> dict[str, object]:
        """What identifies the map.

        For ``basic`` that takes in the block of columns, each of which has a seed of its own, and the device, since GPUs
        and CPUs draw other numbers from one seed.
        """
        if self.name == "identity":
            return {"name": self.name}
        spec: dict[str, object] = {"name": self.name, "dim": self.dim, "seed": self._seed}
        return {**spec, "block": self._block, "device": self._device.type} if self.name == "basic" else spec

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the random matrix that are in memory at a time."""
        return 4 * self._num_parameters * self._block if self.name == "basic" else 0

    def __call__(self, gradients: Tensor) -> Tensor:
        """Map float32 ``(num_samples, num_parameters)`` to ``(num_samples, dim)``; call it with as many rows as fit."""
        if self.name == "identity":
            return gradients
        if self._projector is None:
            self._projector = self._make(self.name, self.dim)
        if self.name == "basic":
            return self._projector.project(gradients, 0)
        rows = [self._project_few(gradients[i : i + _CUDA_ROWS]) for i in range(0, len(gradients), _CUDA_ROWS)]
        return torch.cat(rows)

    def _project_few(self, gradients: Tensor) -> Tensor:
        assert self._projector is not None
        missing = -len(gradients) % 8  # the kernels work on eight rows at a time
        padded = torch.cat([gradients, gradients.new_zeros(missing, gradients.shape[1])]) if missing else gradients
        return self._projector.project(padded.contiguous(), 0)[: len(gradients)]

    def _resolve(self, name: ProjectionName, dim: int) -> str:
        if name == "factored":
            raise UsageError("A factored projection is made of the layers of a network.")
        if name == "auto" and self._num_parameters <= IDENTITY_FACTOR * dim:
            return "identity"
        if name in ("identity", "basic"):
            return name
        reason = f"the device is {self._device}"
        if self._device.type == "cuda":
            try:
                self._projector = self._make("cuda", dim)
                return "cuda"
            except (ImportError, AttributeError, RuntimeError, ValueError) as error:
                reason = str(error).split(".")[0]
        if name == "cuda":
            raise AttribenchError(f"--method.projection cuda does not work here ({reason}); use basic or auto.")
        return "basic"

    def _make(self, name: str, dim: int) -> Projector:
        from trak.projectors import BasicProjector, CudaProjector, ProjectionType

        common = {"grad_dim": self._num_parameters, "proj_dim": dim, "seed": self._seed, "device": self._device}
        common["proj_type"] = ProjectionType.normal
        if name == "cuda":
            if dim % 512:
                raise ValueError(f"trak's CUDA kernel needs a proj_dim that 512 divides; {dim} is none")
            cuda: Projector = CudaProjector(**common, max_batch_size=_CUDA_ROWS)
            return cuda
        basic: Projector = BasicProjector(**common, block_size=self._block)
        return basic
