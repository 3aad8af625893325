"""A toy model of spoken numbers, dates and commands.

It has a larger vocabulary of words and is trained for longer than the demo.

    soda synth --output=numbers/corpus --task=numbers --clips=36000 --texts=6000
    soda codec fit numbers/corpus --output=numbers/codec
    soda tokenize --input=numbers/corpus/manifest.jsonl --output=numbers/speech --codec=mel:numbers/codec
    soda tokenize --input=numbers/corpus/text.jsonl --format=text --output=numbers/text \
        --codec=mel:numbers/codec
    soda train --config=configs/numbers.py --workdir=numbers/run      # run it again to resume
    soda evaluate --workdir=numbers/run --limit=200

The measured word error rates are in the README.
"""

from ml_collections import ConfigDict

from soda_jax.configs import base


def get_config():
    config = base.default()
    config.steps = 5000
    config.batch_size = 8
    config.model.update(
        num_layers=4,
        hidden_size=256,
        intermediate_size=768,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        remat="none",
        unroll=4,
    )
    config.model.rope.update(theta=10_000.0, factor=1.0)
    config.data.sequence_length = 512
    config.data.sources = ConfigDict(
        {
            "speak": base.source("numbers/speech", 0.42, order="text_first"),
            "listen": base.source("numbers/speech", 0.15, order="audio_first"),
            # Text and semantic tokens only. An utterance has 25 tokens instead of 125, so the model
            # learns to predict the next word in far fewer steps than from whole frames.
            "semantic": base.source("numbers/speech", 0.40, codebooks=1),
            "text": base.source("numbers/text", 0.03, order="text_first", composition="text"),
        }
    )
    config.optimizer.update(
        peak_lr=2.5e-3, warmup_fraction=0.05, beta1=0.9, beta2=0.98, eps=1e-8, weight_decay=0.05
    )
    config.checkpoint.update(every_steps=500, every_minutes=5.0, keep=2)
    config.evaluate.update(every_steps=500, batches=16)
    return config
