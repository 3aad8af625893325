"""Runs HuBERT and EnCodec at a common frame rate, with the PyTorch models of `transformers`.

A frame is the shortest duration that contains a whole number of steps of both models. HuBERT has 50
steps per second and EnCodec at 24 kHz has 75, so a frame lasts 1/25 s and contains 2 HuBERT steps
and 3 EnCodec steps.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from soda_jax.codecs.interface import check_clip
from soda_jax.errors import UserError

HUBERT_RATE = 16_000  # Hz; the input rate of all HuBERT models, which their configs do not contain
FOLDERS = ("hubert", "encodec")
# Settings that change the output for the same weights. The fingerprint cannot contain the whole
# configs, because each release of transformers adds keys to them.
_HUBERT_KEYS = (
    *("num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("conv_stride", "feat_extract_activation", "feat_extract_norm", "feat_proj_layer_norm"),
    *("do_stable_layer_norm", "conv_pos_batch_norm", "num_conv_pos_embedding_groups"),
)
_ENCODEC_KEYS = (
    *("sampling_rate", "upsampling_ratios", "norm_type", "use_causal_conv", "pad_mode"),
    *("dilation_growth_rate", "trim_right_ratio", "use_conv_shortcut", "num_lstm_layers"),
)


class EncoderPair:
    """A HuBERT model and an EnCodec model with a common frame rate.

    Attributes:
      sample_rate: sample rate of EnCodec in Hz.
      samples_per_frame: samples per frame at `sample_rate`.
      steps: EnCodec steps per frame.
      quantizers: number of EnCodec quantizers (levels) in use.
      codebook_size: number of entries of each quantizer.
      dims: size of a HuBERT feature vector.
    """

    def __init__(self, hubert: str | Path, encodec: str | Path, quantizers: int, layer: int = 0):
        """Loads both models; reads weights from safetensors files only.

        Args:
          hubert: folder or hub name of a HuBERT model.
          encodec: folder or hub name of a 24 kHz mono EnCodec model.
          quantizers: number of EnCodec quantizers to use.
          layer: HuBERT layer whose outputs are the features, counted from 1; higher layers are
            removed. 0 uses the last layer.

        Raises:
          UserError: if a model is missing, damaged or of another kind, or has too few layers or
            quantizers.
        """
        import torch
        from transformers import EncodecModel, HubertModel

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._hubert = _open(HubertModel, hubert).eval().to(self._device)
        layers = self._hubert.config.num_hidden_layers
        if not 0 <= layer <= layers:
            raise UserError(f"--layer={layer}: {hubert} has layers 1 to {layers}")
        if layer:
            self._hubert.encoder.layers = self._hubert.encoder.layers[:layer]
            self._hubert.config.num_hidden_layers = layer
        self._encodec = _open(EncodecModel, encodec).eval().to(self._device)
        config = self._encodec.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise UserError(
                f"{encodec} has {config.audio_channels} channels, normalize={config.normalize}, "
                f"chunk_length_s={config.chunk_length_s}: it needs more than the codes to decode "
                "audio; use the 24 kHz mono model"
            )
        if not 1 <= quantizers <= config.num_quantizers:
            raise UserError(
                f"{quantizers} quantizers are not possible: {encodec} has {config.num_quantizers}"
            )
        stride = math.prod(self._hubert.config.conv_stride)
        frame = _common_multiple(
            Fraction(stride, HUBERT_RATE), Fraction(config.hop_length, config.sampling_rate)
        )
        self._hubert_samples = int(frame * HUBERT_RATE)
        self._hubert_padding = max(0, _receptive_field(self._hubert.config) - stride)
        self.sample_rate: int = config.sampling_rate
        self.samples_per_frame = int(frame * self.sample_rate)
        self.steps = self.samples_per_frame // config.hop_length
        self.quantizers = quantizers
        self.codebook_size: int = config.codebook_size
        self.dims: int = self._hubert.config.hidden_size

    def features(self, clip: np.ndarray) -> np.ndarray:
        """Returns the mean of the HuBERT features in each frame, float32 `[frames, dims]`.

        The number of frames is that of `Codec.encode`.
        """
        import soxr
        import torch

        whole = self._whole_frames(clip)
        frames = len(whole) // self.samples_per_frame
        if not frames:
            return np.zeros((0, self.dims), np.float32)
        sound = soxr.resample(whole, self.sample_rate, HUBERT_RATE)[: frames * self._hubert_samples]
        # Zero mean and unit variance, as in training. The padding centers the receptive field of
        # step i on the samples of step i.
        sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        half = self._hubert_padding // 2
        after = frames * self._hubert_samples - len(sound) + self._hubert_padding - half
        padded = torch.from_numpy(np.pad(sound, (half, after)).astype(np.float32))
        with torch.inference_mode():
            batch = padded[None].to(self._device)
            # Not last_hidden_state, because large models apply the encoder's final LayerNorm to it.
            found = self._hubert(batch, output_hidden_states=True).hidden_states[-1][0]
        return found.reshape(frames, -1, self.dims).mean(dim=1).cpu().numpy()

    def codes(self, clip: np.ndarray) -> np.ndarray:
        """Returns EnCodec's codes, int64 `[frames, quantizers * steps]`, quantizer-major."""
        import torch

        whole = self._whole_frames(clip)
        if not len(whole):
            return np.zeros((0, self.quantizers * self.steps), np.int64)
        with torch.inference_mode():
            batch = torch.from_numpy(whole)[None, None].to(self._device)
            levels = self._encodec.encode(batch, bandwidth=self._bandwidth()).audio_codes[0, 0]
        levels = levels[: self.quantizers].cpu().numpy()
        by_frame = levels.reshape(self.quantizers, -1, self.steps).transpose(1, 0, 2)
        return by_frame.reshape(-1, self.quantizers * self.steps)

    def sound(self, codes: np.ndarray) -> np.ndarray:
        """Decodes int64 `[frames, quantizers * steps]` to float32 `[samples]` in [-1, 1].

        `codes` may contain only the first quantizers.
        """
        import torch

        frames, columns = codes.shape
        if not frames:
            return np.zeros(0, np.float32)
        by_level = codes.reshape(frames, columns // self.steps, self.steps).transpose(1, 0, 2)
        levels = np.ascontiguousarray(by_level).reshape(len(by_level), -1)
        with torch.inference_mode():
            batch = torch.from_numpy(levels)[None, None].to(self._device)
            audio = self._encodec.decode(batch, [None]).audio_values[0, 0].cpu().numpy()
        return np.clip(audio[: frames * self.samples_per_frame], -1, 1)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Returns the settings that change the output of the models, and their weights by name."""
        settings, tensors = {}, {}
        models = (self._hubert, _HUBERT_KEYS), (self._encodec, _ENCODEC_KEYS)
        for folder, (model, keys) in zip(FOLDERS, models, strict=True):
            settings[folder] = {key: getattr(model.config, key) for key in keys}
            for name, tensor in model.state_dict().items():
                tensors[f"{folder}.{name}"] = tensor.cpu().numpy()
        return settings, tensors

    def save(self, directory: Path) -> None:
        """Writes both models into sub-folders, each file atomically."""
        directory.mkdir(parents=True, exist_ok=True)
        for folder, model in zip(FOLDERS, (self._hubert, self._encodec), strict=True):
            (directory / folder).mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory) as temporary, _without_bars():
                model.save_pretrained(temporary)
                for file in Path(temporary).iterdir():
                    file.replace(directory / folder / file.name)

    def _whole_frames(self, clip: np.ndarray) -> np.ndarray:
        clip = check_clip(clip)
        return np.pad(clip, (0, -len(clip) % self.samples_per_frame))

    def _bandwidth(self) -> float:
        """Returns the lowest EnCodec bandwidth (kbit/s) that includes all `quantizers`."""
        count = self._encodec.quantizer.get_num_quantizers_for_bandwidth
        offered = self._encodec.config.target_bandwidths
        return min(bandwidth for bandwidth in offered if count(bandwidth) >= self.quantizers)


def _common_multiple(a: Fraction, b: Fraction) -> Fraction:
    """Returns the smallest positive number that is a whole multiple of both."""
    return Fraction(math.lcm(a.numerator, b.numerator), math.gcd(a.denominator, b.denominator))


def _receptive_field(config: Any) -> int:
    """Returns the number of samples that one step of HuBERT's convolutions depends on."""
    field, stride = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return field


def _open(kind: Any, source: str | Path) -> Any:
    import torch

    try:
        with _without_bars():
            model, info = kind.from_pretrained(
                str(source), use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # transformers, the hub and safetensors raise many types of errors
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{source} cannot be opened as {kind.__name__} ({reason}): give a folder or a hub name with "
            "config.json and model.safetensors"
        ) from None
    if info["missing_keys"]:
        raise UserError(
            f"{source} is not a {kind.__name__}: it lacks {len(info['missing_keys'])} tensors, such as "
            f"{min(info['missing_keys'])}"
        )
    return model


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Disables the progress bars of transformers inside the context."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
