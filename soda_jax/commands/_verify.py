"""What `soda tokenize --verify` and `soda inspect --verify` print of a data set."""


def print_faults(dataset: str, generation: int = -1) -> int:
    """Prints what is wrong with a data set as the lines of a `masked` file; 1 if something is, else 0."""
    from tokenize_pipeline.verify import verify

    count = 0
    for fault in verify(dataset, generation):
        count += 1
        print(fault.describe())
    print(f"# {dataset}: {f'{count} faults' if count else 'no fault'}")
    return 1 if count else 0
