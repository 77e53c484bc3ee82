"""A softmax over a stream of train images that remembers each image's largest weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: An image holding less than this share of a position's weights skips the search for its k largest: all are kept.
NEGLIGIBLE_SHARE = 1e-9


class PositionSums:
    """What every train image gets of the weights of some positions of the query: the sum of its k largest.

    Weights are softmax over all candidates of all train images, which come chunk by chunk. They are held relative to
    the best match so far, so nothing overflows, and the chunks change the result by rounding at most.

    Args:
        shares: ``(num_train, positions)``, filled by :meth:`add` and, in the end, :meth:`finish`.
        top_k: how many candidates of a train image count.
        chunk: how many train images come at a time.
        number: how often each train image counts among all candidates, ``(num_train,)``.
    """

    def __init__(self, shares: Tensor, top_k: int, chunk: int, number: Tensor) -> None:
        self._shares, self._top_k, self._chunk, self._number = shares, top_k, chunk, number
        self._peak = torch.full((shares.shape[1],), -math.inf, dtype=torch.float64, device=shares.device)
        self._total = torch.zeros_like(self._peak)
        # What each chunk's shares are relative to. (In one tensor: small ones that stay, made between large ones that
        # go, would tear the heap to pieces.)
        self._peaks = self._peak.new_empty(-(-len(shares) // chunk), len(self._peak))

    def add(self, start: int, logits: Tensor) -> None:
        """Take in the train images from ``start`` on; overwrites their ``logits``, ``(n, positions, candidates)``."""
        peak = torch.maximum(self._peak, logits.amax((0, 2)))
        # Below the floor lie denormal numbers: worth nothing here, and 30 times slower on a CPU.
        floor = math.ceil(math.log(torch.finfo(logits.dtype).tiny))
        weights = logits.sub_(peak.to(logits.dtype)[:, None]).clamp_(min=floor).exp_()
        sums = weights.sum(2)
        number = self._number[start : start + self._chunk, None]
        self._total = self._total * (self._peak - peak).exp() + (sums * number).sum(0)
        self._peak = peak
        if self._top_k < weights.shape[2]:
            # The total only grows relative to these weights: what is negligible now will be so in the end.
            large = sums > NEGLIGIBLE_SHARE * self._total
            sums[large] = weights[large].topk(self._top_k, sorted=False).values.sum(1)
        self._shares[start : start + self._chunk] = sums
        self._peaks[start // self._chunk] = peak

    def finish(self) -> None:
        """Normalise the shares, each then in [0, 1]; to be called once, after the last image."""
        for index, peak in enumerate(self._peaks):
            start = index * self._chunk
            self._shares[start : start + self._chunk] *= (peak - self._peak).exp() / self._total
