"""Image sets and where they come from."""

from attribench.data.image_sets import AttributionDataModule, ImageSet, to_rgb, to_unit_range

__all__ = ["AttributionDataModule", "ImageSet", "to_rgb", "to_unit_range"]
