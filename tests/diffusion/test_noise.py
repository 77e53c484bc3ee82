import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from attribench.diffusion.noise import NoiseSchedule, PredictionType, sample_noise
from attribench.errors import UsageError


def test_the_schedule_is_diffusers_default_ddpm_schedule() -> None:
    reference = DDPMScheduler()
    assert torch.allclose(NoiseSchedule().alpha_bar, reference.alphas_cumprod, rtol=1e-6, atol=0)
    images, noise = torch.randn(4, 1, 5, 5), torch.randn(4, 1, 5, 5)
    for timestep in (0, 123, 999):
        expected = reference.add_noise(images, noise, torch.full((4,), timestep))
        assert torch.allclose(NoiseSchedule().add_noise(images, noise, timestep), expected, atol=1e-6)


def test_noise_depends_on_every_argument_and_not_on_the_order_of_calls() -> None:
    base = sample_noise(1, "a", 2, 3, (1, 4, 4))
    others = [(2, "a", 2, 3), (1, "b", 2, 3), (1, "a", 3, 3), (1, "a", 2, 4), (1, "a", 3, 2)]
    drawn = [sample_noise(*arguments, (1, 4, 4)) for arguments in others]
    assert all(not torch.equal(base, other) for other in drawn)
    torch.manual_seed(0)
    assert torch.equal(base, sample_noise(1, "a", 2, 3, (1, 4, 4)))


def test_noise_is_standard_normal() -> None:
    sample = torch.cat([sample_noise(0, str(i), 10, 0, (1000,)) for i in range(50)])
    assert abs(sample.mean()) < 0.02
    assert abs(sample.std() - 1) < 0.02


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_diffusers_trains_on(kind: PredictionType) -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    schedule = NoiseSchedule(scheduler.alphas_cumprod, kind)
    at = torch.tensor([300, 300])
    expected = {"epsilon": noise, "sample": images, "v_prediction": scheduler.get_velocity(images, noise, at)}[kind]
    assert torch.allclose(schedule.target(images, noise, 300), expected, atol=1e-6)
    assert torch.allclose(schedule.add_noise(images, noise, 300), scheduler.add_noise(images, noise, at), atol=1e-6)


def test_only_another_schedule_adds_to_a_specification() -> None:
    usual = NoiseSchedule().alpha_bar
    assert NoiseSchedule(usual.clone()).spec == {}
    others = [NoiseSchedule(usual, "sample"), NoiseSchedule(usual, "v_prediction"), NoiseSchedule(usual**2)]
    assert len({str(schedule.spec) for schedule in others}) == 3


@pytest.mark.parametrize(
    ("alpha_bar", "kind", "message"),
    [
        (torch.ones(10), "epsilon", "10 timesteps"),
        (torch.full((1000,), 1.5), "epsilon", "0 to 1"),
        (None, "flow", "'flow'"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(alpha_bar: Tensor | None, kind: PredictionType, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NoiseSchedule(alpha_bar, kind)
