"""What is kept: the content-addressed store, what several methods share in it, and which code makes what anew."""
