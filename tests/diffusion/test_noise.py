import torch
from diffusers import DDPMScheduler

from attribench.diffusion.noise import NoiseSchedule, sample_noise


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
