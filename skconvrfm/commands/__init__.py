"""Commands of the command line, one a file, and the data and models that they read.

A command has a DESCRIPTION, `add_options` for its parser, and `run`. It may use all of
the package; what is wrong with its options or files is a `UsageError`.
"""
