"""Causal convolutions with a memory, and the residual networks made of them (SEANet).

Activations are `[batch, time, channels]`. Every layer takes, beside its input, what it must remember
of the input before (`past`), and returns both anew: a clip cut in pieces gives the numbers of the
whole. A convolution is written as matrix products, which XLA runs at full speed on every backend; its own
one-dimensional convolution is several times slower on a CPU.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig

Past = list[jax.Array]


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` `[…, in]` times `weight` `[in, out]`; f32 is never rounded to less, on any backend."""
    highest = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, weight, precision=highest)


def elu(x: jax.Array) -> jax.Array:
    """x above 0, eˣ − 1 below; `expm1` is slower and its last digits are lost in the next sum."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def weight(shape: tuple[int, ...], fan_in: float = 0, mean: float = 0.0) -> nnx.Param:
    """An f32 parameter, to be read from a file; `fill_at_random` fills it otherwise.

    Args:
      shape: of the array.
      fan_in: random values are normal, of variance 2 / fan_in (He et al., arXiv 1502.01852); 0 for none.
      mean: of the random values.
    """
    deviation = math.sqrt(2 / fan_in) if fan_in else 0.0
    return nnx.Param(jnp.zeros(shape, jnp.float32), deviation=deviation, mean=mean)


class Conv(nnx.Module):
    """Causal convolution: position t sees the last `(kernel − 1)·dilation + 1` inputs up to its own.

    Attributes:
      weight: f32 `[kernel, in, out]`.
      bias: f32 `[out]`, or None.
      context: how many inputs it remembers.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ):
        self.inputs, self.kernel, self.stride, self.dilation = inputs, kernel, stride, dilation
        self.context = (kernel - 1) * dilation + 1 - stride
        self.weight = weight((kernel, inputs, outputs), kernel * inputs)
        self.bias = weight((outputs,)) if bias else None

    def start(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        """What it remembers before the first sample: silence."""
        return jnp.zeros((batch, self.context, self.inputs), dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[batch, time, in]` to `[batch, time / stride, out]`; time is a multiple of the stride."""
        whole = jnp.concatenate([past, x], axis=1) if self.context else x
        past = whole[:, whole.shape[1] - self.context :]
        taps = self.weight[...].astype(x.dtype)
        if self.kernel == 2 * self.stride and self.stride > 1:
            y = self._halves(whole, taps)
        else:
            y = self._columns(whole, taps, x.shape[1] // self.stride)
        return (y if self.bias is None else y + self.bias[...].astype(x.dtype)), past

    def _halves(self, whole: jax.Array, weight: jax.Array) -> jax.Array:
        """Kernel of two strides: two products with blocks of one stride, with no copy of the input."""
        batch, time, channels = whole.shape
        blocks = whole.reshape(batch, time // self.stride, self.stride * channels)
        first, second = weight.reshape(2, self.stride * channels, -1)
        return matmul(blocks[:, :-1], first) + matmul(blocks[:, 1:], second)

    def _columns(self, whole: jax.Array, weight: jax.Array, steps: int) -> jax.Array:
        """The inputs of each output side by side, then one product."""
        if self.kernel == 1:
            return matmul(whole, weight[0])
        last = (steps - 1) * self.stride + 1
        taps = [
            whole[:, k * self.dilation : k * self.dilation + last : self.stride]
            for k in range(self.kernel)
        ]
        return matmul(jnp.concatenate(taps, axis=2), weight.reshape(-1, weight.shape[2]))


class UpConv(nnx.Module):
    """Causal transposed convolution with a kernel of two strides: the inverse walk of `Conv`.

    Input t reaches the outputs of its own stride and of the next one.

    Attributes:
      weight: f32 `[kernel, in, out]`, or `[kernel, channels]` where each channel stands alone.
      bias: f32 `[out]`, or None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        depthwise: bool = False,
        bias: bool = True,
    ):
        self.inputs, self.stride, self.depthwise = inputs, stride, depthwise
        shape = (2 * stride, inputs) if depthwise else (2 * stride, inputs, outputs)
        self.weight = weight(shape, 2 if depthwise else 2 * inputs)
        self.bias = weight((outputs,)) if bias else None

    def start(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        """What it remembers before the first input: nothing."""
        return jnp.zeros((batch, 1, self.inputs), dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[batch, time, in]` to `[batch, time · stride, out]`."""
        whole = jnp.concatenate([past, x], axis=1)
        batch, time = x.shape[:2]
        taps = self.weight[...].astype(x.dtype)
        if self.depthwise:
            own, next_ = taps[: self.stride], taps[self.stride :]
            y = whole[:, 1:, None] * own + whole[:, :-1, None] * next_
        else:
            flat = taps.transpose(1, 0, 2).reshape(self.inputs, -1)
            spread = matmul(whole, flat).reshape(batch, time + 1, 2, self.stride, -1)
            y = spread[:, 1:, 0] + spread[:, :-1, 1]
        y = y.reshape(batch, time * self.stride, -1)
        return (y if self.bias is None else y + self.bias[...].astype(x.dtype)), whole[:, -1:]


class ResidualBlock(nnx.Module):
    """x + Conv₁(elu(Convₖ(elu(x)))), narrower inside."""

    def __init__(self, config: MimiConfig, channels: int, dilation: int):
        inside, kernel = channels // config.compress, config.residual_kernel_size
        self.first = Conv(channels, inside, kernel, dilation=dilation)
        self.second = Conv(inside, channels, 1)

    def start(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        """The memory of its first convolution; the second has none."""
        return self.first.start(batch, dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Same shape in and out."""
        y, past = self.first(elu(x), past)
        return x + self.second(elu(y), y[:, :0])[0], past


SeaLayer = Conv | UpConv | ResidualBlock


class SeaNet(nnx.Module):
    """A chain of convolutions and residual blocks, ELU before each convolution but the first.

    Attributes:
      layers: the chain.
      numbers: the place of each in the published list, which counts the ELUs too.
    """

    def __init__(self, layers: list[SeaLayer], numbers: list[int]):
        self.layers, self.numbers = nnx.List(layers), tuple(numbers)

    def start(self, batch: int, dtype: jnp.dtype) -> Past:
        """The memory of each layer before the first sample."""
        return [layer.start(batch, dtype) for layer in self.layers]

    def __call__(self, x: jax.Array, past: Past) -> tuple[jax.Array, Past]:
        """Runs the chain; see `Conv` for the shapes."""
        new = []
        for number, (layer, before) in enumerate(zip(self.layers, past, strict=True)):
            if number and not isinstance(layer, ResidualBlock):
                x = elu(x)
            x, after = layer(x, before)
            new.append(after)
        return x, new


def encoder(config: MimiConfig) -> SeaNet:
    """Sound `[batch, samples, 1]` to `[batch, samples / 960, hidden]`."""
    channels = config.num_filters
    layers: list[SeaLayer] = [Conv(1, channels, config.kernel_size)]
    numbers = [0]
    for ratio in reversed(config.upsampling_ratios):
        for block in range(config.num_residual_layers):
            dilation = config.dilation_growth_rate**block
            layers.append(ResidualBlock(config, channels, dilation))
            numbers.append(numbers[-1] + 1)
        layers.append(Conv(channels, 2 * channels, 2 * ratio, stride=ratio))
        numbers.append(numbers[-1] + 2)  # an ELU stands before it
        channels *= 2
    layers.append(Conv(channels, config.hidden_size, config.last_kernel_size))
    return SeaNet(layers, [*numbers, numbers[-1] + 2])


def decoder(config: MimiConfig) -> SeaNet:
    """`[batch, positions, hidden]` to sound `[batch, positions · 960, 1]`."""
    channels = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[SeaLayer] = [Conv(config.hidden_size, channels, config.kernel_size)]
    numbers = [0]
    for ratio in config.upsampling_ratios:
        layers.append(UpConv(channels, channels // 2, ratio))
        numbers.append(numbers[-1] + 2)
        channels //= 2
        for block in range(config.num_residual_layers):
            dilation = config.dilation_growth_rate**block
            layers.append(ResidualBlock(config, channels, dilation))
            numbers.append(numbers[-1] + 1)
    layers.append(Conv(channels, 1, config.last_kernel_size))
    return SeaNet(layers, [*numbers, numbers[-1] + 2])
