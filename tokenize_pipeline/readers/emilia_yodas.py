"""Reads Emilia-YODAS as published with Emilia.

https://huggingface.co/datasets/amphion/Emilia-Dataset

    Emilia-YODAS/EN/EN-B000000.tar    EN_tKvmUvxYZXI_W000006.mp3, EN_tKvmUvxYZXI_W000006.json, …

    {"_id": "EN_tKvmUvxYZXI_W000006", "text": " I think …", "duration": 5.2, "speaker":
     "EN_tKvmUvxYZXI_SPEAKER_00", "language": "en", "dnsmos": 3.1, "phone_count": 61}

The inputs are the archives. A document contains all utterances of one video (`EN_tKvmUvxYZXI`, the
part before the last underscore) by all speakers, in the order of their numbers (SODA, arXiv
2602.16687). The data root is the deepest folder that contains all inputs.
"""

import functools

from tokenize_pipeline.readers._webdataset import data_root, documents

__all__ = ["KIND", "data_root", "read"]

KIND = "speech"
read = functools.partial(documents, identity="_id")
