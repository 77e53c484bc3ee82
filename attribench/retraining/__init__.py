"""Retraining on random subsets: masks, jobs, executors, ground truth."""
