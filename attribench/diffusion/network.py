"""The denoising network."""

from __future__ import annotations

from torch import nn

from attribench.errors import UsageError
from attribench.settings import ModelSettings


def build_network(settings: ModelSettings, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build an untrained ``UNet2DModel`` for images of ``image_shape`` (channels, height, width).

    Every ``torch.nn.Dropout`` gets the configured probability, those inside attention blocks too.

    Raises:
        UsageError: the images cannot be halved as often as the network does it, or a block type is unknown.
    """
    from diffusers import UNet2DModel

    channels, height, width = image_shape
    factor = 2 ** (len(settings.block_out_channels) - 1)
    if height % factor or width % factor:
        raise UsageError(
            f"Images of {height}×{width} do not fit a network with {len(settings.block_out_channels)} levels: both sides "
            f"must be multiples of {factor}. Choose another --data.image_size or fewer --model.block_out_channels."
        )
    try:
        network: nn.Module = UNet2DModel(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=settings.layers_per_block,
            block_out_channels=tuple(settings.block_out_channels),
            down_block_types=tuple(settings.down_block_types),
            up_block_types=tuple(settings.up_block_types),
            attention_head_dim=settings.attention_head_dim,
            norm_num_groups=settings.norm_num_groups,
            norm_eps=settings.norm_eps,
            downsample_padding=settings.downsample_padding,
            flip_sin_to_cos=settings.flip_sin_to_cos,
            freq_shift=settings.freq_shift,
            resnet_time_scale_shift="scale_shift",
            dropout=settings.dropout,
        )
    except ValueError as error:
        raise UsageError(f"The network cannot be built from --model.*: {str(error).splitlines()[0]}") from error
    set_dropout(network, settings.dropout)
    return network


def set_dropout(network: nn.Module, probability: float | None) -> None:
    """Give every ``torch.nn.Dropout`` of a network the same probability; None: each keeps its own."""
    if probability is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
