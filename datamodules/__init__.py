"""Built-in data modules: one module a data set family, found by the registry under its file name."""
