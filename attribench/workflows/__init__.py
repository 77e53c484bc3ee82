"""What the commands compute, one file each, readable from top to bottom; none knows how its result is shown."""
