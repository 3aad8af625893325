"""The sub-commands of `soda`, one file each: SUMMARY, EXAMPLE, add_arguments, run."""
