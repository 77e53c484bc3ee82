"""Per-sample projected gradient features, and what several methods compute from them."""

from attribench.gradients.feature_set import FeatureSet
from attribench.gradients.features import GradientFeatures
from attribench.gradients.outputs import ModelOutput
from attribench.gradients.projection import ProjectionName
from attribench.gradients.ridge import Ridge

__all__ = ["FeatureSet", "GradientFeatures", "ModelOutput", "ProjectionName", "Ridge"]
