"""Configuration: typed dataclasses that check themselves, and their composition from YAML and overrides."""
