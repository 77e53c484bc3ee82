import pytest
import torch

from attribench.diffusion.losses import denoising_losses
from attribench.diffusion.network import build_network
from attribench.diffusion.noise import NoiseSchedule, sample_noise
from attribench.settings import ModelSettings

TIMESTEPS = [3, 500]
CPU = torch.device("cpu")


@pytest.fixture
def network(tiny_model: ModelSettings) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(tiny_model, (1, 8, 8)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


IDS = [f"q{i}" for i in range(7)]


def test_losses_are_the_formula_s_one_by_one_in_float64(network: torch.nn.Module, images: torch.Tensor) -> None:
    losses = denoising_losses(network, images, IDS, TIMESTEPS, 2, seed=5, device=CPU)
    assert losses.shape == (2, 2, 7)
    network = network.double()
    alpha_bar = NoiseSchedule().alpha_bar.double()
    for draw in range(2):
        for index, timestep in enumerate(TIMESTEPS):
            for q in range(7):
                noise = sample_noise(5, IDS[q], timestep, draw, (1, 8, 8)).double()
                clean = images[q].double() / 127.5 - 1
                noisy = alpha_bar[timestep].sqrt() * clean + (1 - alpha_bar[timestep]).sqrt() * noise
                with torch.no_grad():
                    predicted = network(noisy[None], torch.tensor([timestep])).sample[0]
                assert losses[draw, index, q].item() == pytest.approx(
                    ((predicted - noise) ** 2).mean().item(), rel=1e-5
                )


@pytest.mark.parametrize("batch_size", [1, 5, 28])
def test_losses_do_not_depend_on_the_batch_size(
    network: torch.nn.Module, images: torch.Tensor, batch_size: int
) -> None:
    together = denoising_losses(network, images, IDS, TIMESTEPS, 2, 5, CPU, batch_size=1000)
    assert torch.allclose(
        denoising_losses(network, images, IDS, TIMESTEPS, 2, 5, CPU, batch_size=batch_size),
        together,
        rtol=1e-6,
        atol=1e-6,
    )


def test_losses_follow_the_sample_id_not_the_position(network: torch.nn.Module, images: torch.Tensor) -> None:
    forward = denoising_losses(network, images, IDS, TIMESTEPS, 1, 5, CPU)
    backward = denoising_losses(network, images.flip(0), IDS[::-1], TIMESTEPS, 1, 5, CPU)
    assert torch.allclose(forward, backward.flip(-1), rtol=1e-6, atol=1e-6)
