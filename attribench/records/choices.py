"""Choices of options, as ``attribench tune`` files them and ``attribench run --tuned`` applies them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from attribench.errors import RecordError, UsageError
from attribench.records.files import safe
from attribench.store.files import atomic_write


class Trial(BaseModel):
    """Options that were tried and the mean LDS (−1…1) they had on the choosing data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, Any]
    lds: float


class Choice(BaseModel):
    """Chosen options with everything they were chosen by.

    Attributes:
        method: the configuration that was tuned.
        protocol: which data was looked at.
        query_set: the query set the LDS was measured on: generated queries only where validation queries have no scores.
        query_ids: which of its queries.
        subsets: the subsets, by number.
        trials: all that was tried, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    dataset: str
    preset: str
    method: str
    protocol: Literal["standard", "strict"]
    setting_hash: str
    options: dict[str, Any]
    lds: float
    query_set: str = "validation"
    query_ids: list[str]
    subsets: list[int]
    trials: list[Trial]
    created: str

    @property
    def tuned_on(self) -> str:
        """For tables."""
        part = "all" if self.protocol == "standard" else "a half"
        return f"{self.query_set} queries ({part}: {len(self.query_ids)}) and subsets ({part}: {len(self.subsets)})"


def choice_path(dataset: str, preset: str, method: str, protocol: str, setting_hash: str = "") -> Path:
    """Where a choice is filed, relative to the results folder.

    Args:
        setting_hash: for the name it has where a choice of other data or settings has the plain one.
    """
    suffix = f"-{setting_hash[:8]}" if setting_hash else ""
    return Path("tuned", safe(dataset), safe(preset), f"{safe(method)}.{protocol}{suffix}.json")


def save_choice(choice: Choice, results: Path) -> Path:
    """File a choice, in place of an earlier one of the same data and settings alone."""
    names = (choice.dataset, choice.preset, choice.method, choice.protocol)
    path, apart = results / choice_path(*names), results / choice_path(*names, choice.setting_hash)
    if apart.exists() or (path.exists() and _setting_hash(path) != choice.setting_hash):
        path = apart
    atomic_write(path, (json.dumps(choice.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def load_choice(results: Path, dataset: str, preset: str, method: str, protocol: str, expected_setting: str) -> Choice:
    """Read a choice back.

    Raises:
        UsageError: there is none, or it was made in another setting than the present one.
        RecordError: the file is not a choice.
    """
    names = (dataset, preset, method, protocol)
    path, apart = results / choice_path(*names), results / choice_path(*names, expected_setting)
    if apart.is_file():
        path = apart
    if not path.is_file():
        raise UsageError(
            f"{method} has not been tuned for {dataset}, preset {preset}, protocol {protocol}. Run: attribench tune "
            f"--method {method} --dataset {dataset} --preset {preset} --protocol {protocol}"
        )
    choice = _load(path)
    if choice.setting_hash != expected_setting:
        raise UsageError(f"{path} was chosen on other data or settings than this run has; tune again.")
    return choice


def _load(path: Path) -> Choice:
    try:
        return Choice.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:  # pydantic's errors and those of decoding are ValueErrors
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RecordError(f"{path} is not a valid choice: {reason}") from error


def _setting_hash(path: Path) -> str | None:
    try:
        return _load(path).setting_hash
    except RecordError:
        return None
