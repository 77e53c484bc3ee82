from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import TinyData
from torch import Tensor

from attribench import Access, AttributionMethod, Queries
from attribench.computing.progress import silent_progress
from attribench.configuration.resolution import Config, MethodConfig
from attribench.errors import UsageError
from attribench.metrics.lds import linear_datamodeling_score
from attribench.records.sweep import SweepRecord, load_sweeps
from attribench.reporting.figures.charts import numeric
from attribench.settings import Runtime, Settings
from attribench.workflows.opening import open_experiment
from attribench.workflows.sweep import Axis, sweep

pytestmark = pytest.mark.slow


class Power(AttributionMethod):
    """Train images as bright as the query, sharpened.

    Args:
        exponent: of the difference.
        sign: 1 or -1.
    """

    access = Access.DATA

    def __init__(self, exponent: float = 1.0, sign: int = 1) -> None:
        if exponent <= 0:
            raise UsageError("exponent must be positive.")
        self.exponent, self.sign = exponent, sign

    def attribute(self, queries: Queries) -> Tensor:
        difference = queries.unit_range().mean((1, 2, 3))[:, None] - self.context.train.unit_range().mean((1, 2, 3))
        return -self.sign * difference.abs() ** self.exponent


@pytest.fixture
def config(tiny_settings: Settings) -> Config:
    settings = replace(tiny_settings, ground_truth=replace(tiny_settings.ground_truth, num_subsets=4, num_seeds=1))
    return Config(
        "tiny", "smoke", TinyData, {}, settings, [MethodConfig("power", Power, {"exponent": 1.0, "sign": 1})], {}
    )


def run(config: Config, runtime: Runtime, folder: Path, vary: Axis, series: Axis | None = None) -> SweepRecord:
    record, path = sweep(config, runtime, folder, silent_progress, vary, series)
    assert load_sweeps(folder) == [record]
    assert path.name in ("power.exponent.json", "power.exponent.sign.json")
    return record


def test_every_point_is_the_lds_of_its_options(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    record = run(config, runtime, tmp_path, Axis("exponent", [0.5, 2.0]), Axis("sign", [1, -1]))
    assert [(point.value, point.series) for point in record.points] == [(0.5, 1), (2.0, 1), (0.5, -1), (2.0, -1)]
    experiment = open_experiment(config, runtime, silent_progress)
    for name in ("validation", "generation"):
        queries, truth = experiment.queries(name), experiment.ground_truth(name)
        bright = queries.unit_range().mean((1, 2, 3))[:, None] - experiment.train.unit_range().mean((1, 2, 3))
        for point in record.points:
            scores = -point.series * bright.abs() ** point.value
            expected = linear_datamodeling_score(scores, truth.masks, truth.outputs).mean().item()
            result = point.results[name]
            assert result.lds == pytest.approx(expected, abs=1e-9)
            assert result.interval.low <= result.lds <= result.interval.high
        assert record.ground_truth_hashes[name] == truth.hash
        assert record.num_queries[name] == len(queries)
    assert all(point.cost is not None and point.cost.seconds_per_query > 0 for point in record.points)
    assert torch.isfinite(torch.tensor([point.results["validation"].lds for point in record.points])).all()


def test_bad_values_fail_before_any_work(config: Config, runtime: Runtime, tmp_path: Path) -> None:
    for vary, message in ((Axis("exponent", [1.0, -1.0]), "positive"), (Axis("exponents", [1.0]), "Did you mean")):
        with pytest.raises(UsageError, match=message):
            sweep(config, runtime, tmp_path, silent_progress, vary)
    with pytest.raises(UsageError, match="at once"):
        sweep(config, runtime, tmp_path, silent_progress, Axis("sign", [1]), Axis("sign", [1]))
    assert not (Path(runtime.workdir)).exists()


@pytest.mark.parametrize("text", ["patch_size", "patch_size=3", "=[3]", "patch_size=[", "patch_size=[]"])
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a list of values is needed"):
        Axis.parse(text)


def test_axes_are_yaml() -> None:
    assert Axis.parse("timesteps=[[50], [50, 100]]") == Axis("timesteps", [[50], [50, 100]])
    assert numeric([3, 5.5]) == [3.0, 5.5]
    assert numeric([[50], [50, 100]]) == [50.0, 100.0]
    assert numeric(["dot", "cosine"]) is None
    assert numeric([True, False]) is None
