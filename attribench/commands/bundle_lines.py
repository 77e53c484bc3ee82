"""What commands say of a ground truth in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attribench.truth.bundle_files import Header


def described(header: Header) -> list[str]:
    """What a bundle's header says, in a few lines."""
    changed = ", ".join(f"{key}={value}" for key, value in sorted(header.overrides.items()))
    sets = "; ".join(
        f"{name}: {entry.num_queries} queries, truth {entry.truth}" for name, entry in header.query_sets.items()
    )
    settings = header.settings["ground_truth"]
    return [
        f"{header.dataset}, preset {header.preset}{f', changed: {changed}' if changed else ''}",
        f"{settings['num_subsets']} subsets × {settings['num_seeds']} seed(s) of {header.num_train} train images",
        sets,
        f"losses by {len(header.bands)} band(s) of timesteps; target model: {'held' if header.checkpoints else 'not held'}",
        f"made {header.made['created']} with attribench {header.made['versions']['attribench']}; images: {header.data_licence}",
    ]
