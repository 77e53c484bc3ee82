"""How a denoising network is trained, from scratch or as LoRA on a base, and goes on after it was killed."""
