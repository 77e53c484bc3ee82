"""Models that somebody brings: networks, pipelines and LoRA from files, and what their schedulers say."""
