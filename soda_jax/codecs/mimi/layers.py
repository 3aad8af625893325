"""Defines stateful causal convolutions and SEANet, a residual network of such convolutions.

Activations are `[batch, time, channels]`. A layer maps (input, state) to (output, new state). The
state contains the past inputs that the next outputs depend on, so processing a clip in pieces has
the same result as processing the whole clip. Convolutions are written as matrix products, which are
fast on every backend; XLA's one-dimensional convolution is several times slower on a CPU.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from soda_jax.codecs.mimi.config import MimiConfig

Past = list[jax.Array]


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns `x` `[…, in]` times `weight` `[in, out]`; f32 has full precision on every backend."""
    highest = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, weight, precision=highest)


def elu(x: jax.Array) -> jax.Array:
    """Returns x for x > 0, else eˣ − 1.

    `expm1` would be slower, and its extra precision is lost in the next sum.
    """
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def weight(shape: tuple[int, ...], fan_in: float = 0, mean: float = 0.0) -> nnx.Param:
    """Returns an f32 parameter of zeros; values are read from a file or set by `fill_at_random`.

    Args:
      shape: shape of the array.
      fan_in: random values are normal with variance 2 / fan_in (He et al., arXiv 1502.01852); with
        0, all values are `mean`.
      mean: mean of the random values.
    """
    deviation = math.sqrt(2 / fan_in) if fan_in else 0.0
    return nnx.Param(jnp.zeros(shape, jnp.float32), deviation=deviation, mean=mean)


class Conv(nnx.Module):
    """Causal convolution.

    The receptive field of output t is `(kernel − 1)·dilation + 1` inputs and ends at input
    `(t + 1)·stride − 1`.

    Attributes:
      weight: f32 `[kernel, in, out]`.
      bias: f32 `[out]`, or None.
      context: number of past inputs in the state.
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
        """Returns the initial state, zeros."""
        return jnp.zeros((batch, self.context, self.inputs), dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[batch, time, in]` to `[batch, time / stride, out]`; `stride` divides `time`."""
        whole = jnp.concatenate([past, x], axis=1) if self.context else x
        past = whole[:, whole.shape[1] - self.context :]
        taps = self.weight[...].astype(x.dtype)
        if self.kernel == 2 * self.stride and self.stride > 1:
            y = self._halves(whole, taps)
        else:
            y = self._columns(whole, taps, x.shape[1] // self.stride)
        return (y if self.bias is None else y + self.bias[...].astype(x.dtype)), past

    def _halves(self, whole: jax.Array, weight: jax.Array) -> jax.Array:
        """Handles kernel = 2 · stride with two matrix products, without copying the input."""
        batch, time, channels = whole.shape
        blocks = whole.reshape(batch, time // self.stride, self.stride * channels)
        first, second = weight.reshape(2, self.stride * channels, -1)
        return matmul(blocks[:, :-1], first) + matmul(blocks[:, 1:], second)

    def _columns(self, whole: jax.Array, weight: jax.Array, steps: int) -> jax.Array:
        """Uses im2col: concatenates the inputs of each output, then computes one matrix product."""
        if self.kernel == 1:
            return matmul(whole, weight[0])
        last = (steps - 1) * self.stride + 1
        taps = [
            whole[:, k * self.dilation : k * self.dilation + last : self.stride]
            for k in range(self.kernel)
        ]
        return matmul(jnp.concatenate(taps, axis=2), weight.reshape(-1, weight.shape[2]))


class UpConv(nnx.Module):
    """Causal transposed convolution with kernel = 2 · stride.

    Input t contributes to outputs t·stride to (t + 2)·stride − 1.

    Attributes:
      weight: f32 `[kernel, in, out]`, or `[kernel, channels]` if depthwise.
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
        """Returns the initial state, zeros."""
        return jnp.zeros((batch, 1, self.inputs), dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[batch, time, in]` to `[batch, time · stride, out]`."""
        whole = jnp.concatenate([past, x], axis=1)
        batch, time = x.shape[:2]
        taps = self.weight[...].astype(x.dtype)
        if self.depthwise:
            y = whole[:, 1:, None] * taps[: self.stride] + whole[:, :-1, None] * taps[self.stride :]
        else:
            flat = taps.transpose(1, 0, 2).reshape(self.inputs, -1)
            spread = matmul(whole, flat).reshape(batch, time + 1, 2, self.stride, -1)
            y = spread[:, 1:, 0] + spread[:, :-1, 1]
        y = y.reshape(batch, time * self.stride, -1)
        return (y if self.bias is None else y + self.bias[...].astype(x.dtype)), whole[:, -1:]


class ResidualBlock(nnx.Module):
    """x + Conv₁(elu(Convₖ(elu(x)))), with fewer channels between the convolutions."""

    def __init__(self, config: MimiConfig, channels: int, dilation: int):
        inside, kernel = channels // config.compress, config.residual_kernel_size
        self.first = Conv(channels, inside, kernel, dilation=dilation)
        self.second = Conv(inside, channels, 1)

    def start(self, batch: int, dtype: jnp.dtype) -> jax.Array:
        """Returns the initial state of the first convolution; the second has no state."""
        return self.first.start(batch, dtype)

    def __call__(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps `[batch, time, channels]` to the same shape."""
        y, past = self.first(elu(x), past)
        return x + self.second(elu(y), y[:, :0])[0], past


SeaLayer = Conv | UpConv | ResidualBlock


class SeaNet(nnx.Module):
    """Convolutions and residual blocks, with an ELU before each convolution except the first."""

    def __init__(self, layers: list[SeaLayer]):
        self.layers = nnx.List(layers)

    def start(self, batch: int, dtype: jnp.dtype) -> Past:
        """Returns the initial state of each layer."""
        return [layer.start(batch, dtype) for layer in self.layers]

    def __call__(self, x: jax.Array, past: Past) -> tuple[jax.Array, Past]:
        """Applies the layers; see `encoder` and `decoder` for the shapes."""
        new = []
        for number, (layer, before) in enumerate(zip(self.layers, past, strict=True)):
            if number and not isinstance(layer, ResidualBlock):
                x = elu(x)
            x, after = layer(x, before)
            new.append(after)
        return x, new


def encoder(config: MimiConfig) -> SeaNet:
    """Returns the network that maps `[batch, samples, 1]` to `[batch, samples / n, hidden]`.

    n is the product of `upsampling_ratios`, 960 in kyutai/mimi.
    """
    channels = config.num_filters
    layers: list[SeaLayer] = [Conv(1, channels, config.kernel_size)]
    for ratio in reversed(config.upsampling_ratios):
        layers += _residual_blocks(config, channels)
        layers.append(Conv(channels, 2 * channels, 2 * ratio, stride=ratio))
        channels *= 2
    return SeaNet([*layers, Conv(channels, config.hidden_size, config.last_kernel_size)])


def decoder(config: MimiConfig) -> SeaNet:
    """Returns the network that maps `[batch, time, hidden]` to audio `[batch, time · n, 1]`.

    n is as in `encoder`.
    """
    channels = config.num_filters * 2 ** len(config.upsampling_ratios)
    layers: list[SeaLayer] = [Conv(config.hidden_size, channels, config.kernel_size)]
    for ratio in config.upsampling_ratios:
        layers.append(UpConv(channels, channels // 2, ratio))
        channels //= 2
        layers += _residual_blocks(config, channels)
    return SeaNet([*layers, Conv(channels, 1, config.last_kernel_size)])


def _residual_blocks(config: MimiConfig, channels: int) -> list[SeaLayer]:
    dilations = (config.dilation_growth_rate**n for n in range(config.num_residual_layers))
    return [ResidualBlock(config, channels, dilation) for dilation in dilations]
