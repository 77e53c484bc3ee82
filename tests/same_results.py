"""Insist that LDS records under one results folder are those under another: python tests/same_results.py THESE THOSE

Numbers may differ by a thousandth of what an LDS can be: on another processor sums round otherwise, and neighbours in a
ranking may change places.
"""

from __future__ import annotations

import sys
from pathlib import Path

from attribench.records.lds import load_records

TOLERANCE = 1e-3


def main() -> None:
    these, those = (
        {
            (record.dataset, record.setting, record.protocol, record.method): record
            for record in load_records(Path(folder))
        }
        for folder in sys.argv[1:3]
    )
    if not these:
        sys.exit(f"There are no records in {sys.argv[1]}.")
    for key, record in these.items():
        for name, result in record.results.items():
            other = those[key].results[name]
            assert result.ground_truth_hash == other.ground_truth_hash, (key, name)
            for what in ("lds", "low", "high"):
                found, expected = getattr(result, what), getattr(other, what)
                assert abs(found - expected) <= TOLERANCE, f"{key}, {name}, {what}: {found}, not {expected}"
    print(f"{len(these)} records are as in {sys.argv[2]}.")


if __name__ == "__main__":
    main()
