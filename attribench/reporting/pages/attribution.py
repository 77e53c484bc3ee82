"""The page of ``attribench attribute``."""

from __future__ import annotations

from typing import Any

from attribench.data.files import some
from attribench.records.answers import Attributed
from attribench.reporting import judgements
from attribench.reporting.figures.pictures import heat
from attribench.reporting.pages.html import image_uri, pixels_uri, render_page

#: Pictures of train images and heat maps on a page: about 25 MB. Above 32×32 pixels, fewer in proportion.
_MOST_PICTURES = 6000
_PIXELS = 32 * 32

#: Ranks of a query that are shown before queries are left out.
_FEWEST_RANKS = 10


def attribution_page(result: Attributed) -> str:
    """One self-contained HTML file: for each query its strongest train images, with scores and heat maps.

    Its size is bounded, whatever is asked for: it shows the first ranks of the first queries, and says so.
    """
    channels, height, width = result.train.image_shape
    num_ranks, num_queries = _shown(result)
    queries = [
        {
            "name": result.queries.ids[i],
            "image": image_uri(result.queries.images[i]),
            "ranking": _ranking(result, i, num_ranks),
            **judgements.of_query(result, i),
        }
        for i in range(num_queries)
    ]
    skipped = [
        (f"{folder}/{name}", reason) for folder, names in result.skipped.items() for name, reason in names.items()
    ]
    return render_page(
        "attribution.html.j2",
        method=result.method,
        options=", ".join(f"{key} = {value}" for key, value in result.options.items()),
        how=f"The model: {result.model}." if result.model else "No model was used: images were compared with images.",
        num_train=f"{len(result.train):,}",
        size=f"{height}×{width}{' grey' if channels == 1 else ''}",
        queries=queries,
        judged=judgements.summary(result),
        groups=judgements.overall(result),
        num_queries=len(result.queries),
        num_shown=num_ranks,
        num_ranks=_num_ranks(result),
        heat_maps=any(ranking.explanation is not None for ranking in result.rankings),
        skipped=skipped,
        others=[f"{len(names)} in {folder} ({some(names)})" for folder, names in result.others.items() if names],
    )


def _num_ranks(result: Attributed) -> int:
    return max(len(ranking.indices) for ranking in result.rankings)


def _shown(result: Attributed) -> tuple[int, int]:
    """How many ranks, of how many queries."""
    _, height, width = result.train.image_shape
    pictures = 3 if any(ranking.explanation for ranking in result.rankings) else 1  # with two heat maps
    affordable = max(1, _MOST_PICTURES * _PIXELS // (pictures * max(_PIXELS, height * width)))
    ranks = min(_num_ranks(result), max(_FEWEST_RANKS, affordable // len(result.queries)))
    return ranks, min(len(result.queries), max(1, affordable // ranks))


def _ranking(result: Attributed, query: int, num_ranks: int) -> list[dict[str, Any]]:
    shown = []
    ranking = result.rankings[query]
    explained = ranking.explanation.images if ranking.explanation else []
    strongest = zip(ranking.indices[:num_ranks], ranking.scores[:num_ranks], strict=True)
    for rank, (index, score) in enumerate(strongest, start=1):
        item: dict[str, Any] = {
            "rank": rank,
            "name": result.train.ids[index],
            "score": f"{score:.4g}",
            "image": image_uri(result.train.images[index]),
            "query_heat": "",
            "train_heat": "",
            **judgements.mark(result.judgement, query, index),
        }
        if rank <= len(explained) and ranking.explanation is not None:
            evidence = explained[rank - 1].evidence
            item["query_heat"] = pixels_uri(heat(ranking.explanation.query, evidence.query_map))
            item["train_heat"] = pixels_uri(heat(result.train.images[index], evidence.train_map))
        shown.append(item)
    return shown
