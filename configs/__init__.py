"""Presets: one YAML file per family of environments."""
