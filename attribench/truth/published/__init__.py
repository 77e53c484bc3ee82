"""Readers of the ground truth that others publish: D-TRAK's and dattri's."""
