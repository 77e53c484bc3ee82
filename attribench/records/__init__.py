"""What is filed, and how it is read back."""
