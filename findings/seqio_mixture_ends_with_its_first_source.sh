#!/bin/sh
# seqio 0.0.20 (with tensorflow 2.21.0): a mixture of one epoch is not one epoch of each task.
#
# Two tasks of 100 and 10 examples are mixed at 3:1 with num_epochs=1. seqio samples from them until
# the first one is empty (sample_from_datasets with stop_on_empty_dataset=True), so the mixture has
# 33 examples: 23 of the 100 and all 10. One pass over all data needs num_epochs=None and a count of steps, or
# a pass over each task.
#
# Observed: "mixture: 33 of 110 examples; first task 23 of 100, second task 10 of 10"
# Exit status: 0 as observed, 1 if the mixture has more examples.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'seqio==0.0.20' 'tensorflow==2.21.0'
cat >"$folder/mix.py" <<'PYTHON'
import collections

import numpy as np
import seqio
import tensorflow as tf

COUNTS = {"first": 100, "second": 10}
vocabulary = seqio.PassThroughVocabulary(10)
for number, (name, count) in enumerate(COUNTS.items()):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None, n=number, c=count: tf.data.Dataset.from_tensor_slices(
            {"targets": np.full((c, 1), n + 1, np.int32)}
        ),
        splits=["train"],
        num_input_examples={"train": count},
    )
    features = {"targets": seqio.Feature(vocabulary, add_eos=False)}
    seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=features)
seqio.MixtureRegistry.add("mixture", [("first", 3), ("second", 1)])
mixture = seqio.get_mixture_or_task("mixture")
examples = mixture.get_dataset({"targets": 2}, "train", shuffle=False, num_epochs=1)
found = collections.Counter(int(example["targets"][0]) for example in examples)
print(
    f"mixture: {found.total()} of {sum(COUNTS.values())} examples; first task {found[1]} of 100, "
    f"second task {found[2]} of 10"
)
raise SystemExit(found.total() != 33)
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" "$folder/mix.py"
