"""Built-in attribution methods: one module a method, found by the registry under its file name."""
