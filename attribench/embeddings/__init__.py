"""Image embeddings of CLIP, DINOv2, SSCD and other backbones."""
