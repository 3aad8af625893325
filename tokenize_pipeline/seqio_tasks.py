"""The sources of a training config as seqio Tasks and their mixture as a seqio Mixture, for T5X.

    from soda_jax.configs import soda_135m
    from tokenize_pipeline.seqio_tasks import register

    register(soda_135m.get_config().data)  # the mixture "soda" of the tasks "soda.yodas2", …

An example is a whole document as the model sees it: `targets`, int32 ids, BOS first and EOS last. seqio
has no reader for ArrayRecord, so a FunctionDataSource reads through `soda_jax.data`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from soda_jax.data.config import views
from soda_jax.data.dataset import open_splits
from soda_jax.data.manifest import SPLITS
from soda_jax.data.mixture import normalized_weights
from soda_jax.data.split import Split
from soda_jax.errors import UserError
from soda_jax.schema import DataConfig, parse
from soda_jax.tokens.documents import View, render

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf


def register(config: Mapping[str, Any], name: str = "soda") -> "seqio.Mixture":
    """Registers a task for each source, and the mixture of them.

    The rates are the normalised weights of the config. They count examples, so documents: tokens have the
    same shares only where documents are equally long on average.

    Args:
      config: the `data` part of a training config; see `soda_jax.data.config`.
      name: of the mixture; its tasks are NAME.SOURCE, with _ for characters that seqio does not take.

    Returns:
      The mixture.

    Raises:
      UserError: if the config or a data set is at fault, or the name is taken.
    """
    import seqio
    import tensorflow as tf

    if name in seqio.MixtureRegistry.names():
        raise UserError(f"seqio has a mixture {name!r} already: give another name")
    data = parse(DataConfig, config, "data")
    weights = normalized_weights({name: source.weight for name, source in data.sources.items()})
    training = open_splits(data, "train")
    layout = training[0].manifest.layout
    vocabulary = seqio.PassThroughVocabulary(layout.size, eos_id=layout.eos)
    features = {"targets": seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)}
    rates = []
    for source in training:
        shown = views(data.sources[source.name], source.manifest, source.name)
        one = dataclasses.replace(data, sources={source.name: data.sources[source.name]})
        splits = {
            split: open_splits(one, split)[0]
            for split in SPLITS
            if source.manifest.splits.get(split)
        }
        counts = {split: len(each.documents) * len(shown) for split, each in splits.items()}
        task = re.sub(r"[^\w.:#]", "_", f"{name}.{source.name}")
        seqio.TaskRegistry.add(
            task,
            source=seqio.FunctionDataSource(_reader(splits, shown), list(splits), counts),
            preprocessors=[in_pieces],
            output_features=features,
        )
        rates.append((task, weights[source.name]))
    return seqio.MixtureRegistry.add(name, rates)


def in_pieces(
    dataset: "tf.data.Dataset", sequence_length: Mapping[str, int] | None
) -> "tf.data.Dataset":
    """Cuts documents longer than `sequence_length["targets"]`: seqio would drop what is behind it."""
    import tensorflow as tf

    if not sequence_length:
        return dataset
    length = sequence_length["targets"]

    def cut(example: dict[str, Any]) -> "tf.data.Dataset":
        ids = example["targets"]
        starts = tf.data.Dataset.range(0, tf.size(ids, tf.int64), length)
        return starts.map(lambda start: {"targets": ids[start : start + length]})

    return dataset.flat_map(cut)


def _reader(splits: Mapping[str, Split], shown: Sequence[View]) -> Callable[..., "tf.data.Dataset"]:
    """The function of a FunctionDataSource: every document under each view."""

    def read(split: str, shuffle_files: bool, seed: int | None = None) -> "tf.data.Dataset":
        import tensorflow as tf

        draw = np.random.default_rng(seed if seed is None else int(seed)) if shuffle_files else None
        return tf.data.Dataset.from_generator(
            lambda: _examples(splits[split], shown, draw),
            output_signature={"targets": tf.TensorSpec([None], tf.int32)},
        )

    return read


def _examples(
    source: Split, shown: Sequence[View], draw: np.random.Generator | None
) -> Iterator[dict[str, np.ndarray]]:
    """Documents view after view in stored order, or all under one permutation, anew at each call.

    A document with a masked or damaged record is left out: seqio has no mask for its tokens.
    """
    places = source.documents.tolist()
    order = np.arange(len(places) * len(shown))
    for number in order if draw is None else draw.permutation(order):
        view, place = divmod(int(number), len(places))
        document = source.read_document(*places[place])
        if document is not None:
            yield {"targets": render(document[1], shown[view], source.manifest.layout)}
