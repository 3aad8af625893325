"""Emilia-YODAS as published with Emilia: https://huggingface.co/datasets/amphion/Emilia-Dataset

    Emilia-YODAS/EN/EN-B000000.tar    EN_tKvmUvxYZXI_W000006.mp3, EN_tKvmUvxYZXI_W000006.json, …

    {"_id": "EN_tKvmUvxYZXI_W000006", "text": " I think …", "duration": 5.2, "speaker":
     "EN_tKvmUvxYZXI_SPEAKER_00", "language": "en", "dnsmos": 3.1, "phone_count": 61}

The inputs are the archives. A document is all utterances of one video (`EN_tKvmUvxYZXI`), in the order of their
numbers, whoever speaks (SODA, arXiv 2602.16687: what stands before the last underscore). The data root is
the folder that holds all inputs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenize_pipeline.readers import DocumentSource, Rejected
from tokenize_pipeline.readers._webdataset import data_root, documents

__all__ = ["KIND", "data_root", "read"]

KIND = "speech"


def read(inputs: Sequence[Path]) -> Iterator[DocumentSource | Rejected]:
    """Yields one document a video; see `_webdataset.documents`."""
    return documents(inputs, "_id")
