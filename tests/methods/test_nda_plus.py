"""The mixture against its parts, and its search on a made-up LDS."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule
from attribench.errors import UsageError
from attribench.method import AttributionMethod, score, start
from attribench.methods.nda import NDA
from attribench.methods.nda_plus import NDAPlus, Term, search_terms
from attribench.methods.score_machine import ScoreMachine
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method

#: Three scales of NDA at t = 200, one at t = 400; the machine at t = 500 and 700.
MIXTURE: dict[str, Any] = {
    "timesteps": [200, 200, 200, 400], "patch_size": [3, 5, 4, 5], "downsample": [1, 1, 2, 1], "weight": [1.0, 0.5, 0.25, 2.0],
    "influence_timesteps": [500, 700], "influence_patch_size": [3, 5], "influence_weight": [1.5, 0.75], "top_k": 5,
}  # fmt: skip


def images(count: int, seed: int) -> tuple[Tensor, tuple[str, ...]]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 7, 8), generator=generator, dtype=torch.uint8)
    return pixels, tuple(f"{seed}-{i}" for i in range(count))


def scored(method: AttributionMethod, folder: Path) -> Tensor:
    store = ArtifactStore(folder)
    context = AttributionContext(
        ImageSet(*images(6, 1)), NoiseSchedule(), torch.device("cpu"), 42, store, Access.DATA
    )  # fmt: skip
    start(method, context)
    return score(method, Queries(*images(3, 2)))


@pytest.mark.parametrize("more", [{}, {"flips": True, "order": "leave-one-out", "noise_draws": 2}])
def test_it_is_the_weighted_sum_of_standardised_parts(more: dict[str, Any], tmp_path: Path) -> None:
    shared = {key: more[key] for key in ("flips", "noise_draws") if key in more}
    parts = [
        (1.0, NDA([200], 3, None, 1.0, 5, **shared)),
        (0.5, NDA([200], 5, None, 1.0, 5, **shared)),
        (0.25, NDA([200], 1, 4, 0.0, 5, **shared)),
        (2.0, NDA([400], 5, None, 1.0, 5, **shared)),
        (1.5, ScoreMachine([500], 3, **more)),
        (0.75, ScoreMachine([700], 5, **more)),
    ]
    expected = torch.zeros(3, 6, dtype=torch.float64)
    for weight, method in parts:
        for row, scores in zip(expected, scored(method, tmp_path).double(), strict=True):
            row += weight * scores / (scores - scores.mean()).square().mean().sqrt()
    found = scored(NDAPlus(**MIXTURE, **more), tmp_path)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    slow = scored(NDAPlus(**MIXTURE, **more, engine="reference"), tmp_path)
    torch.testing.assert_close(slow, found, rtol=1e-3, atol=1e-3)


def test_terms_that_are_kept_score_the_same_and_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scored(NDAPlus(**MIXTURE), tmp_path)
    assert not list(tmp_path.glob("terms/*"))
    assert torch.equal(scored(NDAPlus(**MIXTURE, keep_terms=True), tmp_path), plain)
    assert len(list(tmp_path.glob("terms/*/spec.json"))) == 6

    def fail(self: NDAPlus, term: Term, queries: Queries) -> Tensor:
        raise AssertionError(f"{term} is computed again")

    monkeypatch.setattr(NDAPlus, "_computed", fail)
    assert torch.equal(scored(NDAPlus(**MIXTURE, keep_terms=True), tmp_path), plain)
    other = {**MIXTURE, "influence_weight": [0.5, 0.0]}
    assert not torch.allclose(scored(NDAPlus(**other, keep_terms=True), tmp_path), plain)
    with pytest.raises(AssertionError, match="is computed again"):
        scored(NDAPlus(**{**MIXTURE, "top_k": 6}, keep_terms=True), tmp_path)


def test_a_term_that_tells_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(self: NDAPlus, term: Term, queries: Queries) -> Tensor:
        row = torch.arange(6.0) if term.kind == "nda" else 1e-9 * torch.rand(6)
        return row.expand(len(queries), -1)

    monkeypatch.setattr(NDAPlus, "_computed", computed)
    found = scored(NDAPlus([200], 3, 1, influence_timesteps=[500], influence_patch_size=3), tmp_path)
    torch.testing.assert_close(found[0], torch.arange(6.0).double() / (35 / 12) ** 0.5)


def test_either_part_may_be_absent(tmp_path: Path) -> None:
    options: dict[str, Any] = {"timesteps": [500], "patch_size": 3, "downsample": 1, "influence_patch_size": 3}
    machine = scored(NDAPlus(**{**options, "timesteps": [], "influence_timesteps": [500]}), tmp_path)
    nda = scored(NDAPlus(**options, influence_timesteps=[]), tmp_path)
    assert (machine < 0).any()
    assert (nda >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": [1000], "patch_size": 3, "downsample": 1}, r"timesteps: each must lie in 0\.\.999"),
        ({"influence_timesteps": [-1, 3]}, r"influence_timesteps: each must lie in 0\.\.999"),
        ({"patch_size": [3]}, "patch_size: 1 values for 10 timesteps"),
        ({"downsample": [1, 2]}, "downsample: 2 values"),
        ({"weight": [1.0]}, "weight: 1 values"),
        ({"weight": -1.0}, "weight: each must be finite and not negative"),
        ({"influence_weight": float("inf")}, "influence_weight: each must be finite"),
        ({"influence_weight": [1.0]}, "influence_weight: 1 values for 2 timesteps"),
        ({"influence_patch_size": [3]}, "influence_patch_size: 1 values"),
        ({"influence_patch_size": 4}, "influence_patch_size must be odd"),
        ({"patch_size": 3}, "must be even"),
        ({"downsample": 3}, "downsample must be 1 or 2"),
        ({"weight": 0.0, "influence_weight": 0.0}, "No term has a weight"),
        ({"timesteps": [], "influence_timesteps": []}, "values for 0 timesteps"),
        ({"order": "frist"}, "Did you mean 'first'"),
        ({"engine": "fats"}, "Did you mean 'fast'"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"noise_draws": 0}, "noise_draws must be at least 1"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NDAPlus(**options)


@pytest.mark.parametrize("options", [{}, MIXTURE])
def test_conforms(options: dict[str, Any]) -> None:
    assert check_method(NDAPlus, **options) is None


def test_the_search_finds_the_terms_that_help() -> None:
    """A made-up LDS, with NDA's size 5 at t = 100, and the machine's size 9 at t = 500 at weight 2, best."""
    tried: list[dict[str, Any]] = []

    def lds(options: Mapping[str, Any]) -> float:
        assert set(options) <= set(inspect.signature(NDAPlus).parameters)
        NDAPlus(**options)  # every trial is a valid one
        tried.append(dict(options))
        total = 0.01 if options.get("top_k") == 10 else 0.0
        columns = ("timesteps", "patch_size", "downsample", "weight")
        for time, size, scale, weight in zip(*(options[name] for name in columns), strict=True):
            worth = 0.4 - 0.02 * abs(size - 5) - 0.1 * (scale - 1)
            total += worth * weight / 4 if time == 100 else -0.1 * weight
        columns = ("influence_timesteps", "influence_patch_size", "influence_weight")
        for _, size, weight in zip(*(options[name] for name in columns), strict=True):
            total += 0.2 - 0.05 * (weight - 2) ** 2 - 0.01 * abs(size - 9)
        return total

    options = {"timesteps": [300, 100, 100], "influence_timesteps": [500], "top_k": 100}
    found = search_terms(lds, options)
    assert (found["influence_timesteps"], found["influence_patch_size"], found["influence_weight"]) == (
        [500],
        [9],
        [2.0],
    )
    assert set(found["timesteps"]) == {100}
    assert 5 in found["patch_size"]
    assert found["top_k"] == 10
    assert "keep_terms" not in found
    assert all(trial["keep_terms"] for trial in tried)
    assert max(map(lds, list(tried))) == lds({**found, "keep_terms": True})


def test_the_search_can_do_without_nda() -> None:
    found = search_terms(
        lambda options: sum(options["influence_patch_size"]),
        {"timesteps": [], "influence_timesteps": [500], "top_k": 9},
    )
    assert found["timesteps"] == []
    assert found["influence_patch_size"] == [21]
    assert "top_k" not in found
