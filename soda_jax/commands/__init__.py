"""The sub-commands of `soda`. Each file defines SUMMARY, EXAMPLE, add_arguments and run."""
