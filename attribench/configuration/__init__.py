"""From names, presets and options to one typed configuration."""
