"""The machine: device, seeds, cost, progress, and comparing vectors on it."""
