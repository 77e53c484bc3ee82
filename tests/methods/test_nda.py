from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from attribench import Access, AttributionContext, ImageSet, Queries
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.errors import DataError, UsageError
from attribench.method import score, start
from attribench.methods.nda import NDA, convolution, patch_influence
from attribench.methods.nda import method as nda_method
from attribench.methods.nda.engine.compiled import patch_influence_fast
from attribench.methods.nda.position_sums import PositionSums
from attribench.methods.nda.task import PatchTask
from attribench.store.artifacts import ArtifactStore
from attribench.testing import check_method

GOLDEN = Path(__file__).parent / "data" / "nda_reference.npz"
GOLDEN_CIFAR2 = Path(__file__).parents[2].parent / "shared" / "golden" / "nda_cifar2.npz"
ALPHA_BAR = NoiseSchedule().alpha_bar

Array = NDArray[np.float64]


def brute_force(
    noisy_query: Tensor, train: Tensor, alpha_bar: float, patch_size: int, top_k: int, downsample: int = 1
) -> Array:
    """The definition, step by step: pad with 10, take every patch, compare every pair."""

    def patches(image: Array) -> Array:
        pad = (patch_size - 1) // 2
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), constant_values=10.0)
        windows = sliding_window_view(padded, (patch_size, patch_size), axis=(1, 2))  # C, rows, columns, P, P
        if downsample == 2:
            half = patch_size // 2
            windows = windows.reshape(*windows.shape[:3], half, 2, half, 2).sum((4, 6)) / 2
        return np.moveaxis(windows, 0, 2).reshape(windows.shape[1] * windows.shape[2], -1)

    query_patches = patches(noisy_query.double().numpy())
    scaled = np.sqrt(alpha_bar) * train.double().numpy()
    distances = np.stack(
        [((query_patches[:, None] - patches(image)[None]) ** 2).sum(2) for image in scaled], axis=1
    )  # positions, images, candidates
    logits = -(distances - distances.min((1, 2), keepdims=True)) / (2 * (1 - alpha_bar))
    weights = np.exp(logits)
    weights /= weights.sum((1, 2), keepdims=True)
    return np.sort(weights, axis=2)[:, :, ::-1][:, :, :top_k].sum((0, 2))  # type: ignore[no-any-return]


def problem(
    seed: int, num_train: int, channels: int, height: int, width: int, timestep: int
) -> tuple[Tensor, Tensor, float]:
    """A noisy query that resembles the first train image, smooth train images, and ᾱ; float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_train, channels, height // 2 + 1, width // 2 + 1, generator=generator) * 2 - 1
    train = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    alpha_bar = ALPHA_BAR[timestep].item()
    query = (train[0] + 0.1 * torch.randn(train[0].shape, generator=generator)).clamp(-1, 1)
    noise = torch.randn(query.shape, generator=generator)
    return alpha_bar**0.5 * query + (1 - alpha_bar) ** 0.5 * noise, train, alpha_bar


def relative_error(scores: Tensor, expected: Array | Tensor) -> float:
    reference = torch.as_tensor(expected, dtype=torch.float64)
    return float((scores.double() - reference).abs().max() / reference.max())


def golden_cases(path: Path) -> Iterator[tuple[str, Tensor, Tensor, float, int, int, int, Tensor]]:
    stored = np.load(path)
    train = torch.from_numpy(stored["train_uint8"]).float() / 127.5 - 1
    queries = torch.from_numpy(stored["test_uint8"]).float() / 127.5 - 1
    for case in range(sum(name.endswith("_params") for name in stored)):
        timestep, patch, low_patch, top_k = (int(value) for value in stored[f"case{case}_params"][:4])
        alpha_bar = ALPHA_BAR[timestep].item()
        noisy = alpha_bar**0.5 * queries + (1 - alpha_bar) ** 0.5 * torch.from_numpy(stored[f"case{case}_noise"])
        for name, size, downsample in (("single", patch, 1), ("down", low_patch, 2)):
            expected = torch.from_numpy(stored[f"case{case}_{name}_float64"])
            yield f"{name} {case}", noisy, train, alpha_bar, size, top_k, downsample, expected


@pytest.mark.slow
@pytest.mark.parametrize(("path", "num_queries"), [(GOLDEN, 3), (GOLDEN_CIFAR2, 1)], ids=["photographs", "cifar2"])
def test_matches_the_reference_values(path: Path, num_queries: int) -> None:
    if not path.exists():
        pytest.skip(f"{path.name} is not part of the repository and not beside it")
    for name, noisy, train, alpha_bar, patch_size, top_k, downsample, expected in golden_cases(path):
        for query, row in zip(noisy[:num_queries], expected, strict=False):
            scores = patch_influence(query, train, alpha_bar, patch_size, top_k, downsample)
            assert scores.dtype == torch.float32
            assert float((scores.double() - row).abs().max() / expected.max()) < 1e-5, name
            fast = patch_influence_fast(query, train, alpha_bar, patch_size, top_k, downsample)
            assert float((fast.double() - row).abs().max() / expected.max()) < 1e-5, name


problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "num_train": st.integers(1, 4),
        "channels": st.integers(1, 3),
        "height": st.integers(2, 7),
        "width": st.integers(2, 7),
        "timestep": st.sampled_from([0, 10, 100, 300, 500, 999]),
    }
)
patch_sizes = st.one_of(
    st.tuples(st.integers(1, 9), st.just(1)), st.tuples(st.integers(1, 5).map(lambda half: 2 * half), st.just(2))
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems, patch_sizes, st.integers(1, 50), st.booleans(), st.sampled_from([1, 3000, 2**28]))
def test_equals_brute_force(
    sizes: dict[str, int], patch: tuple[int, int], top_k: int, double: bool, memory_limit: int
) -> None:
    noisy, train, alpha_bar = problem(**sizes)
    if double:
        noisy, train = noisy.double(), train.double()
    patch_size, downsample = patch
    expected = brute_force(noisy, train, alpha_bar, patch_size, top_k, downsample)
    scores = patch_influence(noisy, train, alpha_bar, patch_size, top_k, downsample, memory_limit=memory_limit)
    assert scores.dtype == noisy.dtype
    assert relative_error(scores, expected) < (1e-8 if double else 2e-5)


@pytest.mark.parametrize(("patch_size", "downsample"), [(5, 1), (4, 1), (6, 2)])
def test_without_a_cut_every_position_gives_one(patch_size: int, downsample: int) -> None:
    noisy, train, alpha_bar = problem(0, 6, 3, 9, 12, 300)
    positions = 9 * 12 if patch_size % 2 else 8 * 11
    scores = patch_influence(noisy, train, alpha_bar, patch_size, 10**6, downsample)
    assert scores.sum().item() == pytest.approx(positions, rel=1e-5)
    assert patch_influence(noisy, train, alpha_bar, patch_size, 1, downsample).sum() < positions


def test_finds_the_image_that_the_query_comes_from() -> None:
    noisy, train, alpha_bar = problem(1, 8, 3, 12, 12, 100)
    for patch_size, downsample in ((5, 1), (6, 2)):
        assert patch_influence(noisy, train, alpha_bar, patch_size, 100, downsample).argmax() == 0


@pytest.mark.parametrize(("patch_size", "downsample"), [(5, 1), (8, 2), (21, 1)])
def test_memory_limit_changes_nothing(patch_size: int, downsample: int) -> None:
    noisy, train, alpha_bar = problem(2, 11, 3, 13, 10, 200)
    whole = patch_influence(noisy, train, alpha_bar, patch_size, 10, downsample)
    for limit in (1, 20_000, 200_000):
        parts = patch_influence(noisy, train, alpha_bar, patch_size, 10, downsample, memory_limit=limit)
        assert relative_error(parts, whole) < 1e-6


@pytest.mark.parametrize("limit", [200_000, 1_000_000])
def test_memory_limit_bounds_what_is_alive(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, train, alpha_bar = problem(3, 50, 3, 16, 16, 200)
    logits_bytes: list[int] = []
    shares_bytes: dict[int, int] = {}  # of every run over the train images, by its tensor

    class Recorded(PositionSums):
        def add(self, start: int, logits: Tensor) -> None:
            logits_bytes.append(logits.nbytes)
            storage = self._shares.untyped_storage()
            shares_bytes[storage.data_ptr()] = storage.nbytes()
            super().add(start, logits)

    monkeypatch.setattr(convolution, "PositionSums", Recorded)
    patch_influence(noisy, train, alpha_bar, 5, 10)
    # Without the limit far more is alive: all positions × images, and a block of logits of all images.
    assert max(shares_bytes.values()) == 256 * 50 * 4
    assert max(logits_bytes) == 144 * 144 * 50 * 4
    logits_bytes.clear()
    shares_bytes.clear()
    patch_influence(noisy, train, alpha_bar, 5, 10, memory_limit=limit)
    assert 0 < max(shares_bytes.values()) <= limit // 4
    assert 0 < max(logits_bytes) <= limit // 2 // convolution.BUFFERS


def test_positions_are_a_partition_and_sum_to_the_scores() -> None:
    noisy, train, alpha_bar = problem(4, 5, 1, 8, 10, 300)
    parts = list(convolution.position_influence(noisy, train, alpha_bar, 5, 3, memory_limit=3000))
    assert len(parts) > 2  # several runs over the train images
    assert sorted(torch.cat([positions for positions, _ in parts]).tolist()) == list(range(80))
    total = torch.stack([influence.sum(1) for _, influence in parts]).sum(0)
    assert relative_error(total, patch_influence(noisy, train, alpha_bar, 5, 3)) < 1e-6


def test_positions_are_where_they_say() -> None:
    """Train image 1 equals the (noise-free) query around one pixel only: it has influence there and nowhere else."""
    generator = torch.Generator().manual_seed(5)
    query = torch.rand(1, 9, 9, generator=generator) * 2 - 1
    train = torch.stack([query + 0.2, torch.rand(1, 9, 9, generator=generator) * 2 - 1])
    train[1, :, 3:6, 5:8] = query[:, 3:6, 5:8]
    influence = torch.empty(81)
    for positions, part in convolution.position_influence(query * 0.999**0.5, train, 0.999, 3, 1):
        influence[positions] = part[1]
    assert influence.argmax() == 4 * 9 + 6
    assert influence[4 * 9 + 6] > 0.99


def test_few_train_images() -> None:
    noisy, train, alpha_bar = problem(6, 2, 3, 8, 8, 100)
    assert patch_influence(noisy, train[:1], alpha_bar, 3, 100).item() == pytest.approx(64, rel=1e-5)


def test_arguments_are_left_alone_and_may_be_views() -> None:
    noisy, train, alpha_bar = problem(7, 4, 3, 8, 10, 100)
    views = noisy.transpose(1, 2).contiguous().transpose(1, 2), train.transpose(0, 1).contiguous().transpose(0, 1)
    copies = noisy.clone(), train.clone()
    scores = patch_influence(noisy, train, alpha_bar, 3, 5)
    assert torch.equal(noisy, copies[0])
    assert torch.equal(train, copies[1])
    assert relative_error(patch_influence(*views, alpha_bar, 3, 5), scores) < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_scores() -> None:
    for name, noisy, train, alpha_bar, patch_size, top_k, downsample, expected in golden_cases(GOLDEN):
        scores = patch_influence(noisy[0].cuda(), train.cuda(), alpha_bar, patch_size, top_k, downsample)
        assert scores.is_cuda
        assert float((scores.cpu() - expected[0]).abs().max() / expected.max()) < 1e-5, name


def with_value(shape: tuple[int, ...], value: float) -> Tensor:
    images = torch.zeros(shape)
    images.view(-1)[-1] = value
    return images


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"patch_size": 0}, UsageError, "at least 1"),
        ({"patch_size": 2.5}, UsageError, "whole number"),
        ({"patch_size": 5, "downsample": 2}, UsageError, "must be even"),
        ({"downsample": 3}, UsageError, "downsample must be 1 or 2"),
        ({"top_k": 0}, UsageError, "top_k"),
        ({"top_k": 1.5}, UsageError, "top_k must be a whole number"),
        ({"alpha_bar": 1.0}, UsageError, "alpha_bar"),
        ({"alpha_bar": 0.0}, UsageError, "alpha_bar"),
        ({"alpha_bar": float("nan")}, UsageError, "alpha_bar"),
        ({"noisy_query": np.zeros((3, 8, 8))}, UsageError, "must be a tensor; got ndarray"),
        ({"noisy_query": torch.zeros(3, 8, 9)}, DataError, "one shape"),
        ({"noisy_query": torch.zeros(1, 8, 8)}, DataError, "one shape"),
        ({"noisy_query": torch.zeros(3, 8, 8, dtype=torch.uint8)}, DataError, "floating point"),
        ({"noisy_query": with_value((3, 8, 8), float("nan"))}, DataError, "query holds NaN or infinity"),
        ({"noisy_query": with_value((3, 8, 8), float("inf"))}, DataError, "query holds NaN or infinity"),
        ({"train": np.zeros((2, 3, 8, 8))}, UsageError, "must be a tensor; got ndarray"),
        ({"train": torch.zeros(3, 8, 8)}, DataError, "must be \\(N, C, H, W\\)"),
        ({"train": torch.zeros(0, 3, 8, 8)}, DataError, "at least one"),
        ({"train": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, DataError, "floating point"),
        ({"train": with_value((2, 3, 8, 8), float("nan"))}, DataError, "Train image 1 holds NaN or infinity"),
        ({"train": with_value((2, 3, 8, 8), -float("inf"))}, DataError, "Train image 1 holds NaN or infinity"),
        ({"noisy_query": torch.zeros(3, 1, 8), "train": torch.zeros(2, 3, 1, 8), "patch_size": 4}, DataError, "fits"),
    ],
)
@pytest.mark.parametrize("influence", [patch_influence, patch_influence_fast])
def test_wrong_arguments_are_refused(
    influence: Callable[..., Tensor], changes: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {
        "noisy_query": torch.zeros(3, 8, 8),
        "train": torch.zeros(2, 3, 8, 8),
        "alpha_bar": 0.5,
        "patch_size": 3,
        "top_k": 5,
    }
    with pytest.raises(error, match=message):
        influence(**{**arguments, **changes})


def test_a_memory_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="memory_limit"):
        patch_influence(torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8), 0.5, 3, 5, memory_limit=0)


@pytest.mark.parametrize("influence", [patch_influence, patch_influence_fast])
def test_inputs_with_gradients_and_bytes_will_do(influence: Callable[..., Tensor]) -> None:
    noisy, train, alpha_bar = problem(8, 4, 3, 8, 8, 100)
    train = ((train + 1) * 127.5).round() / 127.5 - 1
    expected = influence(noisy, train, alpha_bar, 3, 5)
    scores = influence(noisy.clone().requires_grad_(), train.clone().requires_grad_(), alpha_bar, 3, 5)
    assert torch.equal(scores, expected)
    assert not scores.requires_grad
    pixels = ((train + 1) * 127.5).round().to(torch.uint8)
    assert relative_error(influence(noisy, pixels, alpha_bar, 3, 5), expected) < 1e-6


# --- the method ---


def images(count: int, seed: int, channels: int = 3) -> tuple[Tensor, tuple[str, ...]]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return pixels, tuple(f"{seed}-{i}" for i in range(count))


def prepared(method: NDA, tmp_path: Path, seed: int = 42) -> NDA:
    train = ImageSet(*images(6, seed=1))
    start(
        method,
        AttributionContext(train, NoiseSchedule(), torch.device("cpu"), seed, ArtifactStore(tmp_path), Access.DATA),
    )
    return method


def test_combines_timesteps_scales_and_draws_as_defined(tmp_path: Path) -> None:
    timesteps, sizes, low_sizes, alphas = (100, 400), (3, 5), (4, 6), (0.3, 0.8)
    method = NDA(timesteps, sizes, low_sizes, alphas, top_k=7, noise_draws=2)
    queries = Queries(*images(3, seed=2))
    scores = score(prepared(method, tmp_path), queries)
    train = ImageSet(*images(6, seed=1)).unit_range()
    expected = np.zeros((3, 6))
    for row, image in zip(expected, queries.unit_range(), strict=True):
        for timestep, size, low_size, alpha in zip(timesteps, sizes, low_sizes, alphas, strict=True):
            for draw in range(2):
                alpha_bar = ALPHA_BAR[timestep].item()
                noise = sample_noise(42, "nda", timestep, draw, (3, 8, 8))
                noisy = alpha_bar**0.5 * image + (1 - alpha_bar) ** 0.5 * noise
                row += alpha * brute_force(noisy, train, alpha_bar, size, 7) / 4
                row += (1 - alpha) * brute_force(noisy, train, alpha_bar, low_size, 7, downsample=2) / 4
    assert relative_error(scores, expected) < 1e-5


def test_seed_decides_the_noise(tmp_path: Path) -> None:
    queries = Queries(*images(2, seed=2))
    options = {"timesteps": [500], "patch_size": 3, "low_resolution_patch_size": None}
    first, again, other = (score(prepared(NDA(**options), tmp_path, seed), queries) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=0.01)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, [(100, 3, 1), (100, 4, 2), (300, 3, 1), (300, 6, 2)]),
        ({"alpha": 1}, [(100, 3, 1), (300, 3, 1)]),
        ({"alpha": 0.0}, [(100, 4, 2), (300, 6, 2)]),
        ({"alpha": [1.0, 0.0]}, [(100, 3, 1), (300, 6, 2)]),
        ({"low_resolution_patch_size": None, "alpha": 0.0}, [(100, 3, 1), (300, 3, 1)]),
    ],
)
def test_computes_nothing_of_weight_zero(
    options: dict[str, object], calls: list[tuple[int, int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    timestep_of = {ALPHA_BAR[timestep].item(): timestep for timestep in (100, 300)}

    def engine(train: Tensor, device: torch.device) -> nda_method.PatchScorer:
        def scorer(tasks: Sequence[PatchTask], progress: Callable[[float], None], saved: object) -> Tensor:
            seen.extend((timestep_of[task.alpha_bar], task.patch_size, task.downsample) for task in tasks)
            return torch.ones(len(tasks), len(train), dtype=torch.float64)

        return scorer

    monkeypatch.setitem(nda_method.ENGINES, "fast", engine)
    method = NDA(**{"timesteps": [100, 300], "patch_size": 3, "low_resolution_patch_size": [4, 6], **options})  # type: ignore[arg-type]
    scores = score(prepared(method, tmp_path), Queries(*images(1, seed=2)))
    assert seen == calls
    assert torch.equal(scores, torch.ones(1, 6))  # the weights of a timestep sum to 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [1000], "patch_size": 3, "low_resolution_patch_size": 4}, "0..999"),
        ({"timesteps": [-1], "patch_size": 3, "low_resolution_patch_size": 4}, "0..999"),
        ({"timesteps": [100, 200]}, "5 values for 2 timesteps"),
        ({"low_resolution_patch_size": [4, 6]}, "low_resolution_patch_size: 2 values for 5 timesteps"),
        ({"alpha": [0.5]}, "alpha: 1 values"),
        ({"alpha": 1.5}, "alpha must lie"),
        ({"patch_size": 0}, "at least 1"),
        ({"low_resolution_patch_size": 7}, "even"),
        ({"top_k": 0}, "top_k"),
        ({"noise_draws": 0}, "noise_draws"),
        ({"engine": "convolutions"}, "Did you mean 'convolution'"),
    ],
)
def test_wrong_options_are_refused_at_once(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NDA(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"patch_size": 3, "low_resolution_patch_size": 4, "top_k": 5}])
def test_conforms(options: dict[str, object]) -> None:
    assert check_method(NDA, **options) is None
