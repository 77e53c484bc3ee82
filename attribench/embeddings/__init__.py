"""Image embeddings of CLIP models."""
