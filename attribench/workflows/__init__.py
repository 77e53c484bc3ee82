"""What the commands compute, one file each, readable from top to bottom; none knows how its result is shown.

They share ``opening`` (a setting from a configuration), ``checks``, ``scoring`` and ``evaluation``.
"""
