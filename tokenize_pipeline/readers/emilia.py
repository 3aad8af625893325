"""Reads Emilia as published on Hugging Face.

https://huggingface.co/datasets/amphion/Emilia-Dataset

    Emilia/EN/EN-B000000.tar    EN_B00000_S00000_W000000.mp3, EN_B00000_S00000_W000000.json, …

    {"id": "EN_B00000_S00000_W000000", "wav": "EN_B00000/…/EN_B00000_S00000_W000000.mp3", "text": " You can …",
     "duration": 6.264, "speaker": "EN_B00000_S00000", "language": "en", "dnsmos": 3.2927}

The inputs are the archives. A document contains all utterances of one shard and speaker
(`EN_B00000_S00000`) in the order of their numbers (SODA, arXiv 2602.16687). The field
`wav` is not used. The data root is the deepest folder that contains all inputs.
"""

import functools

from tokenize_pipeline.readers._webdataset import data_root, documents

__all__ = ["KIND", "data_root", "read"]

KIND = "speech"
read = functools.partial(documents, identity="id")
