"""Prints the result of `soda tokenize --verify` and `soda inspect --verify`."""


def print_faults(dataset: str, generation: int = -1) -> int:
    """Prints the errors in a data set as lines of a `mask_records` file; returns 1 if any."""
    from tokenize_pipeline.verify import verify

    count = 0
    for fault in verify(dataset, generation):
        count += 1
        print(fault.describe())
    print(f"# {dataset}: {f'{count} errors' if count else 'no errors'}")
    return 1 if count else 0
