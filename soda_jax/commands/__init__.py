"""The sub-commands of `soda`, one module each; modules that start with `_` are helpers.

A sub-command defines SUMMARY, EXAMPLE, add_arguments and run. PASSES_UNKNOWN_OPTIONS is optional.
"""
