import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler

from attribench.diffusion.network import build_network
from attribench.diffusion.sampling import generate_images
from attribench.settings import GenerationSettings, ModelSettings

CPU = torch.device("cpu")
SETTINGS = GenerationSettings(num_images=5, num_inference_steps=10)


@pytest.fixture
def network(tiny_model: ModelSettings) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(tiny_model, (1, 8, 8)).eval()


def test_images_are_those_of_diffusers_ddim_pipeline(network: torch.nn.Module) -> None:
    pipeline = DDIMPipeline(unet=network, scheduler=DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    for seed in (0, 3):
        reference = pipeline(
            generator=[torch.Generator().manual_seed(seed)], num_inference_steps=10, eta=0.0, output_type="np"
        ).images
        expected = np.round(reference * 255).astype(int).transpose(0, 3, 1, 2)
        ours = generate_images(network, [seed], (1, 8, 8), SETTINGS, CPU).numpy().astype(int)
        assert np.abs(ours - expected).max() <= 1  # rounding of nearly half values


def test_an_image_depends_on_its_seed_not_on_its_batch(network: torch.nn.Module) -> None:
    together = generate_images(network, [0, 1, 2, 3], (1, 8, 8), SETTINGS, CPU, batch_size=4)
    apart = generate_images(network, [3, 1], (1, 8, 8), SETTINGS, CPU, batch_size=1)
    assert together.dtype == torch.uint8
    assert (together[[3, 1]].int() - apart.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])
