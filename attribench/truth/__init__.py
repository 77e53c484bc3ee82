"""Ground truth: how models retrained on subsets of the train images do on the queries."""
