"""The commands of the command line, a function each. They parse, call one function of the package, and print."""
