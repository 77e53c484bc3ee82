"""YAML shipped with attribench: data sets with their presets, and named method configurations."""
