"""What is kept: the content-addressed store, and what several methods share in it."""
