"""The LDS of any score matrix, without a run: all that is needed are scores, subsets and losses.

    python examples/score_matrix.py

Here they are made up: every train image has a true effect on every query's loss, and a method knows it up to noise.
"""

from __future__ import annotations

import torch

from attribench.metrics import lds_interval, linear_datamodeling_score, noise_ceiling, predict_outputs

NUM_TRAIN, NUM_QUERIES, NUM_SUBSETS, NUM_SEEDS = 200, 40, 64, 2


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    effects = torch.randn(NUM_QUERIES, NUM_TRAIN, generator=generator)
    scores = effects + torch.randn(NUM_QUERIES, NUM_TRAIN, generator=generator)  # (queries, train)

    masks = torch.rand(NUM_SUBSETS, NUM_TRAIN, generator=generator) < 0.5  # (subsets, train)
    noise = 10 * torch.randn(NUM_SUBSETS, NUM_SEEDS, NUM_QUERIES, generator=generator)
    losses = noise - (masks.float() @ effects.T)[:, None]  # (subsets, seeds, queries)
    outputs = losses.mean(dim=1)  # (subsets, queries)

    lds = linear_datamodeling_score(scores, masks, outputs)
    interval = lds_interval(predict_outputs(scores, masks), outputs)
    print(f"LDS × 100: {100 * lds.mean():.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
    ceiling = noise_ceiling(losses)  # None with a single seed
    if ceiling is not None:
        print(f"noise ceiling: {100 * ceiling.lds:.1f}")


if __name__ == "__main__":
    main()
