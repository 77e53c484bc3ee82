"""Leaderboards as tables: functions of records alone.

Records of different settings or presets never share a table, and a missing query set stays missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attribench.records.attributability import AttributabilityRecord
from attribench.records.files import MethodRecord
from attribench.records.lds import CostRecord, IntervalRecord, MeasuredLDS, QuerySetResult, Record
from attribench.reporting.boards import Board, boards
from attribench.reporting.formats import MISSING, NOTHING, Column, Table
from attribench.settings import QUERY_SETS

UNKNOWN = "unknown"
CEILING = "noise ceiling"
ATTRIBUTABLE = "attributability"
ACCESS = {
    "DATA": "data",
    "MODEL": "model",
    "CHECKPOINTS": "checkpoints",
    "RETRAINED": "retrained models",
    "UNKNOWN": "unknown",
}
TIE = " ≈"
TIE_NOTE = (
    "≈: not distinguishable from the best, in bold (paired bootstrap over queries and subsets and Wilcoxon's test over queries "
    "do not both reject at 5 %, adjusted by Holm over all pairs)."
)


def leaderboards(records: Sequence[Record], results: Path | None = None) -> list[Table]:
    """One table for each group of records that may be compared; see :func:`attribench.reporting.boards.boards`."""
    return [leaderboard(board) for board in boards(records, results)]


def leaderboard(board: Board) -> Table:
    """A board as a table: a row a method, the best first, then the noise ceiling and the attributability."""
    columns = [Column("method")]
    for name in QUERY_SETS:
        columns += [Column("LDS×100 [95 %]", group=name), Column("subsets only", "below", name)]
    columns += [Column(name) for name in ("looks at", "prepare s", "s/query", "peak MiB", "stored MiB")]
    columns.append(Column("tuned on", "note"))
    rows = [_row(record, board) for record in board.records]
    best = {name: best_lds(board, name) for name in QUERY_SETS}
    bold = {
        (number, 1 + 2 * index)
        for number, record in enumerate(board.records)
        for index, name in enumerate(QUERY_SETS)
        if rivals(record, name) and record.results[name].lds == best[name] and len(board.records) > 1
    }
    rules = set()
    ceilings = [board.ceiling(name) for name in QUERY_SETS]
    if any(ceilings):
        rules.add(len(rows))
        cells = [text for ceiling in ceilings for text in (_cell(ceiling), MISSING)]
        rows.append([CEILING, *cells, *[MISSING] * (len(columns) - 1 - len(cells))])
    if board.attributability:
        rules |= set() if rules else {len(rows)}
        found = [board.attributability.get(name) for name in QUERY_SETS]
        cells = [text for one in found for text in (one.text if one else MISSING, MISSING)]
        rows.append([ATTRIBUTABLE, *cells, *[MISSING] * (len(columns) - 1 - len(cells))])
    return Table(board.title, notes(board), columns, rows, frozenset(bold), frozenset(rules))


def _row(record: Record, board: Board) -> list[str]:
    cells = [record.method]
    for name in QUERY_SETS:
        result = record.results.get(name)
        cells += [_cell(result) + _tie(record, name, board), published_cell(result)]
    return [*cells, ACCESS[record.access], *_costs(record.cost), record.tuned_on or NOTHING]


#: A share of the machine's CPUs that others take without being worth a note.
DISTURBED = 0.1


def _costs(cost: CostRecord | None) -> list[str]:
    if cost is None:
        return [UNKNOWN] * 4
    return [
        f"{cost.prepare_seconds:.2f}",
        f"{cost.seconds_per_query:.2g}",
        f"{cost.peak_bytes / 2**20:.0f}",
        f"{cost.stored_bytes / 2**20:.1f}",
    ]


def _tie(record: Record, query_set: str, board: Board) -> str:
    result = record.results.get(query_set)
    if result is None or not board.tested(query_set) or record.method not in board.best[query_set]:
        return ""
    leads = result.lds == best_lds(board, query_set)
    return "" if leads else TIE


def rivals(record: Record, query_set: str) -> bool:
    """Whether a row competes for the best of a query set: one that is given retrained models is a reference."""
    return query_set in record.results and record.access != "RETRAINED"


def best_lds(board: Board, query_set: str) -> float:
    found = (record.results[query_set].lds for record in board.records if rivals(record, query_set))
    return max(found, default=0.0)


def _cell(result: MeasuredLDS | None) -> str:
    return MISSING if result is None else result.text


def published_cell(result: QuerySetResult | None) -> str:
    """The statistic of published tables: mean ± standard deviation over resamples of the subsets."""
    if result is None:
        return MISSING
    return f"{100 * result.published_bootstrap.mean:.1f} ± {100 * result.published_bootstrap.std:.1f}"


def notes(board: Board) -> list[str]:
    """How a board's numbers were made, in full sentences."""
    first, records = board.first, board.records
    truth = first.settings["ground_truth"]
    queries = ", ".join(f"{len(result.per_query)} {name}" for name, result in first.results.items())
    timesteps = len(range(0, 1000, truth["timestep_stride"]))
    said = [
        f"{train_images(first)}; {board.num_subsets} subsets × "
        f"{truth['num_seeds']} seed(s), trained {first.settings['training']['epochs']} epochs; queries: {queries}; losses at "
        f"{timesteps} timesteps × {truth['num_noise_draws']} noise draws.",
        "LDS × 100: mean over queries, with the 95 % bootstrap interval over queries and subsets. Subsets only: the published "
        "statistic, mean ± standard deviation over 64 resamples of the subsets.",
    ]
    if any(board.tested(name) for name in QUERY_SETS):
        said.append(TIE_NOTE)
    alone = [name for name, result in first.results.items() if len(result.per_query) == 1]
    if alone:
        said.append(f"One {' and one '.join(alone)} query alone: how the mean varies with the query cannot be told.")
    said += _ceiling_notes(board)
    said += _attributability_notes(board)
    said += _truth_notes(board)
    said += preset_notes(first)
    if reference := _reference_notes(records):
        said.append(f"{reference[0]} Times are without retraining.")
    said += undefined_notes(records)
    undefined = [
        f"{record.method}: {result.undefined_queries} of {len(result.per_query)} {name} queries"
        for record in records
        for name, result in record.results.items()
        if result.undefined_queries
    ]
    if undefined:
        said.append(f"No correlation is defined, and 0 counted, for {'; '.join(undefined)}.")
    compiled = [
        f"{record.method} {record.cost.compile_seconds:.0f} s"
        for record in records
        if record.cost and record.cost.compile_seconds >= 1
    ]
    if compiled:
        said.append(f"Compilation, once a machine, is not in the times: {', '.join(compiled)}.")
    if found := disturbed({record.method: record.cost.others_share for record in records if record.cost}):
        said.append(f"Times were taken while others used part of the machine's CPUs, and are too long: {found}.")
    return said


def disturbed(shares: Mapping[str, float | None]) -> str:
    """Rows whose times were taken beside other work, and how much of the machine that took; empty if none were.

    Args:
        shares: of the machine that others took, by row; None where that is not known.
    """
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share and share >= DISTURBED)


def _reference_notes(records: Sequence[Record]) -> list[str]:
    if all(record.access != "RETRAINED" for record in records):
        return []
    return [
        "Rows that look at retrained models are no rivals but a reference: they are fitted to retrained models, other ones "
        "than those they are judged on (by folds of the subsets, ranked within folds)."
    ]


def undefined_notes(records: Sequence[Record]) -> list[str]:
    """Why cells are missing on whose queries a method is not defined, a sentence for each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, reason in record.undefined.items():
            found.setdefault((name, reason), []).append(record.method)
    return [
        f"No cell on {name} queries, on which {'it is' if len(methods) == 1 else 'they are'} not defined: "
        f"{', '.join(methods)}: {reason.rstrip('.')}."
        for (name, reason), methods in found.items()
    ]


def _ceiling_notes(board: Board) -> list[str]:
    found = {name: ceiling for name in QUERY_SETS if (ceiling := board.ceiling(name))}
    if not found:
        return []
    first = next(iter(found.values()))
    text = f"Noise ceiling: what a perfect method would reach, from the agreement of {first.num_replicates} {first.replicates}"
    if first.replicates == "noise draws":
        text += "; with one training seed it leaves out the noise of training and is too high"
    return [f"{text}."]


def _attributability_notes(board: Board) -> list[str]:
    if not board.attributability:
        return []
    found = "; ".join(
        f"{one.found} of {len(one.query_ids)} {name} queries" for name, one in board.attributability.items()
    )
    return [
        "Attributability: the share of the variance of a query's loss between models that is due to which images they were "
        f"trained on, and not to the training seed; mean over queries. Found to respond at 5 % false discovery: {found}."
    ]


def attributability_table(record: AttributabilityRecord) -> Table:
    """A row a query set and number of train images."""
    columns = [Column(name) for name in ("queries", "train images", "models", "attributability [95 %]", "found to respond",
                                         "respond, estimated [95 %]", "noise ceiling [95 %]")]  # fmt: skip
    rows = [
        [
            result.query_set + (", strict protocol" if result.protocol == "strict" else ""),
            str(point.num_train),
            f"{result.num_subsets} × {result.num_seeds}",
            result.text,
            f"{result.found} of {len(result.query_ids)}",
            _percent(result.responding, result.responding_interval),
            _cell(result.ceiling),
        ]
        for point in record.points
        for result in point.results
    ]
    notes = [
        "Attributability: the share of the variance of a query's loss between models that is due to which images they were "
        "trained on, and not to the training seed; mean over queries, with the 95 % bootstrap interval over both.",
        "Found to respond: queries whose loss depends on the subset by an F test, at a false discovery rate of 5 %. Estimated: "
        "how many respond, found or not, from the p-values above ½.",
        f"Ground truth: {record.ground_truth or 'retrained here'}.",
    ]
    return Table(f"Attributability: {record.title}", notes, columns, rows)


def _percent(value: float, interval: IntervalRecord) -> str:
    return f"{100 * value:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def band_tables(board: Board) -> list[Table]:
    """A board by noise level: for each query set, a column a band of timesteps, from little noise to much."""
    tables = []
    for name in QUERY_SETS:
        found = [record for record in board.records if name in record.results and record.results[name].bands]
        if not found:
            continue
        first = found[0].results[name].bands
        columns = [Column("method"), *(Column(f"t {band.first}–{band.last - 1}") for band in first)]
        columns.append(Column("tuned on", "note"))
        rows = [
            [record.method, *(band.text for band in record.results[name].bands), record.tuned_on or NOTHING]
            for record in found
        ]
        competing = {number: record.results[name].bands for number, record in enumerate(found) if rivals(record, name)}
        bold = {
            (number, 1 + index)
            for number, bands in competing.items()
            for index, band in enumerate(bands)
            if band.lds == max(others[index].lds for others in competing.values()) and len(found) > 1
        }
        rules = frozenset[int]()
        if any(band.ceiling for band in first):
            rules = frozenset([len(rows)])
            rows.append([CEILING, *(_cell(band.ceiling) for band in first), MISSING])
        said = [
            "LDS × 100 on the losses at these timesteps alone, with the 95 % bootstrap interval over queries and subsets "
            "(200 resamples). Scores are the same in every column; the best is in bold.",
            *_truth_notes(board),
            *preset_notes(board.first),
            *_reference_notes(found),
        ]
        tables.append(
            Table(f"{board.title}: {name} queries by noise level", said, columns, rows, frozenset(bold), rules)
        )
    return tables


def _truth_notes(board: Board) -> list[str]:
    names = sorted({record.ground_truth for record in board.records if record.ground_truth})
    hashes = {name: result.ground_truth_hash[:12] for name, result in board.first.results.items()}
    shown = ", ".join(f"{name} {digest}" for name, digest in hashes.items())
    return [f"Ground truth: {' = '.join(names)} ({shown})." if names else f"Ground truth: retrained here ({shown})."]


def train_images(record: MethodRecord) -> str:
    """How many train images of which size."""
    channels, height, width = record.image_shape
    return f"{record.num_train} train images of {height}×{width}×{channels}"


def preset_notes(record: MethodRecord) -> list[str]:
    """A warning for settings that are not the published ones."""
    if record.preset == "paper":
        return []
    return [f"Preset {record.preset} is CPU-sized: not comparable with published numbers."]
