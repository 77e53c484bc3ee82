"""The diffusion model: noise, network, training, sampling, per-timestep losses."""
