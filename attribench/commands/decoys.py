"""The options of ``attribench attribute`` that judge a ranking against decoys, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribench.records.answers import Attributed


def add_decoy_options(parser: Any) -> None:
    """``--decoys``, ``--contributors``, ``--false-discovery``."""
    parser.add_argument("--decoys", type=str, help="Does anything stand out? A folder of images that were not trained on, "
                        "scored beside the train images; auto: a random tenth of these, 50 at least, is set apart; it "
                        "takes 200.")  # fmt: skip
    parser.add_argument("--contributors", type=str, help="With --decoys: totals per contributor: subfolder, or a CSV file with "
                        "the columns train and contributor.")  # fmt: skip
    parser.add_argument("--false-discovery", "--false_discovery", type=float, default=0.05, help="With --decoys: the share of "
                        "images said to stand out that may be wrong.")  # fmt: skip


def told(result: Attributed, out: Path) -> Iterator[str]:
    """Lines on what stands out; writes the groups' file beside the others."""
    judgement = result.judgement
    if judgement is None:
        return
    counts = [len(judgement.stands_out(query)) for query in range(len(result.queries))]
    some, rate = sum(count > 0 for count in counts), f"{100 * judgement.rate:g} % false discovery"
    yield f"Decoys: {judgement.decoys}."
    if some:
        yield f"For {some} of {len(counts)} queries train images stand out at {rate}, {sum(counts)} in all."
    else:
        yield f"Nothing stands out at {rate}, for any query."
    if judgement.groups:
        from attribench.records.group_files import save_groups

        path = out / "groups.parquet"
        save_groups(result, path)
        yield str(path)
