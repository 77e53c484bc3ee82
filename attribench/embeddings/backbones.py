"""Backbones by name."""

from __future__ import annotations

from attribench.embeddings.backbone import Backbone
from attribench.embeddings.clip_models import DEFAULT_MODEL, DEFAULT_PRETRAINED, find_model
from attribench.embeddings.sscd import SSCD_NAMES, Sscd
from attribench.embeddings.timm_models import find_timm_model, timm_names
from attribench.errors import UsageError, nearest

#: Short names, and the timm models they stand for.
_SHORT = {
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-giant": "vit_giant_patch14_dinov2.lvd142m",
}


def find_backbone(name: str, pretrained: str | None = None, own_weights: bool = False) -> Backbone:
    """Look a backbone up.

    ===================================== ============================================================================
    ``clip``                              CLIP's ViT-B-32
    ``dinov2``, ``dinov2-base`` …         DINOv2 (arXiv 2304.07193), ViT-S/14 unless a size is named, by way of timm
    ``sscd``, ``sscd_disc_blur`` …        SSCD (arXiv 2202.10261), the ResNet-50 models
    a name of ``open_clip.list_models()`` its image tower
    a name of ``timm.list_models()``      without its classifier; ``NAME.TAG`` names the weights
    path of a JSON file                   a model configuration in open_clip's format
    ===================================== ============================================================================

    Where open_clip and timm both have a name, ``open_clip:NAME`` and ``timm:NAME`` tell them apart.

    Args:
        pretrained: open_clip's tag of the weights; None is ``openai``. timm has it in the name.
        own_weights: a file will be given in place of the download.

    Raises:
        UsageError: no such backbone or tag, a tag where none belongs, or a name that two libraries have.
    """
    import open_clip

    library, _, rest = name.rpartition(":")
    if library not in ("", "open_clip", "timm"):  # a path may have a colon in it
        library, rest = "", name
    clips = open_clip.list_models()
    if rest == "clip" or rest.endswith(".json") or library == "open_clip":
        return _open_clip(rest, pretrained, own_weights)
    is_clip, is_timm = rest.replace("/", "-") in clips, rest in timm_names()
    if is_clip and is_timm and not library:
        raise UsageError(f"Both open_clip and timm have a model {rest!r}: say open_clip:{rest} or timm:{rest}.")
    if is_clip and not library:
        return _open_clip(rest, pretrained, own_weights)
    if pretrained is not None:
        raise UsageError(
            f"pretrained is the tag of an open_clip model, and {name!r} is none: timm's tags are part of the name, NAME.TAG."
        )
    if library == "timm" or is_timm:
        return find_timm_model(rest)
    if rest in _SHORT:
        return find_timm_model(_SHORT[rest], label=f"{rest} ({_SHORT[rest]})")
    if rest == "sscd" or rest in SSCD_NAMES:
        return Sscd(SSCD_NAMES[0] if rest == "sscd" else rest)
    known = ("clip", *_SHORT, "sscd", *SSCD_NAMES, *clips, *sorted(timm_names()))
    raise UsageError(
        f"Unknown backbone {name!r}.{nearest(name, known)} It is clip, dinov2, sscd, a name of "
        "`open_clip.list_models()` or `timm.list_models()`, or the path of a JSON model configuration."
    )


def _open_clip(name: str, pretrained: str | None, own_weights: bool) -> Backbone:
    model = DEFAULT_MODEL if name == "clip" else name
    return find_model(model, DEFAULT_PRETRAINED if pretrained is None else pretrained, own_weights)
