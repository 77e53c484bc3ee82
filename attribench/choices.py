"""Choices of options, as ``attribench tune`` files them and ``attribench run --tuned`` applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from attribench.errors import RecordError, UsageError


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
        query_ids: the validation queries the LDS was measured on.
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
    query_ids: list[str]
    subsets: list[int]
    trials: list[Trial]
    created: str

    @property
    def tuned_on(self) -> str:
        """For tables."""
        part = "all" if self.protocol == "standard" else "a half"
        return f"validation queries ({part}: {len(self.query_ids)}) and subsets ({part}: {len(self.subsets)})"


def choice_path(dataset: str, preset: str, method: str, protocol: str) -> Path:
    """Where a choice is filed, relative to the results folder."""
    return Path("tuned", dataset, preset, f"{method}.{protocol}.json")


def load_choice(results: Path, dataset: str, preset: str, method: str, protocol: str, expected_setting: str) -> Choice:
    """Read a choice back.

    Raises:
        UsageError: there is none, or it was made in another setting than the present one.
        RecordError: the file is not a choice.
    """
    path = results / choice_path(dataset, preset, method, protocol)
    if not path.is_file():
        raise UsageError(
            f"{method} has not been tuned for {dataset}, preset {preset}, protocol {protocol}. Run: attribench tune "
            f"--method {method} --dataset {dataset} --preset {preset} --protocol {protocol}"
        )
    try:
        choice = Choice.model_validate_json(path.read_text("utf-8"))
    except ValidationError as error:
        raise RecordError(f"{path} is not a valid choice: {error.errors()[0]['msg']}") from error
    if choice.setting_hash != expected_setting:
        raise UsageError(f"{path} was chosen on other data or settings than this run has; tune again.")
    return choice
