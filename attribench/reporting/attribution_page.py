"""The page of ``attribench attribute``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attribench.reporting.html import image_uri, pixels_uri, render_page
from attribench.reporting.pictures import heat

if TYPE_CHECKING:
    from attribench.attribution import Attributed, Ranking, Request


def attribution_page(result: Attributed, request: Request) -> str:
    """One self-contained HTML file: for each query its strongest train images, with scores and heat maps."""
    channels, height, width = result.train.image_shape
    queries = [
        {"name": name, "image": image_uri(image), "ranking": _ranking(result, ranking)}
        for name, image, ranking in zip(result.queries.ids, result.queries.images, result.rankings, strict=True)
    ]
    skipped = [
        (f"{folder}/{name}", reason) for folder, names in result.skipped.items() for name, reason in names.items()
    ]
    return render_page(
        "attribution.html.j2",
        method=result.method,
        options=", ".join(f"{key} = {value}" for key, value in result.options.items()),
        how="No model was used: images were compared with images.",
        num_train=f"{len(result.train):,}",
        size=f"{height}×{width}{' grey' if channels == 1 else ''}",
        queries=queries,
        heat_maps=any(ranking.explanation is not None for ranking in result.rankings),
        skipped=skipped,
    )


def _ranking(result: Attributed, ranking: Ranking) -> list[dict[str, Any]]:
    shown = []
    explained = ranking.explanation.images if ranking.explanation else []
    for rank, (index, score) in enumerate(zip(ranking.indices, ranking.scores, strict=True), start=1):
        item: dict[str, Any] = {
            "rank": rank,
            "name": result.train.ids[index],
            "score": f"{score:.4g}",
            "image": image_uri(result.train.images[index]),
            "query_heat": "",
            "train_heat": "",
        }
        if rank <= len(explained) and ranking.explanation is not None:
            evidence = explained[rank - 1].evidence
            item["query_heat"] = pixels_uri(heat(ranking.explanation.query, evidence.query_map))
            item["train_heat"] = pixels_uri(heat(result.train.images[index], evidence.train_map))
        shown.append(item)
    return shown
