"""A lean U-Net: the same forward and the same gradients in less CPU time, as one reversible patch.

A small model spends most of a step beside its arithmetic: in calls for tiny matrices, in copies, in kernels made for
large inputs. Each part here is another order of the same sums, so results agree to rounding (1e-6 of the gradient):

    lora         y = (W + scale B A) x, one product for three, where that is fewer operations
    attention    a text that is repeated for every frame meets the Key and Value projections once; attention over a
                 few frames or pixels is two batched products and an exponential
    geglu        both halves of the gate's gradient are written in place
    convolution  an image of at most 2x2 pixels is convolved by one matrix product
    temporal     the 3x1x1 convolutions over frames run as 2-D ones, or as one product where a frame is a few pixels

Dropout masks are those of the stock layers. Hidden states are [(b f) c h w], tokens [sequences length channels].
"""

import itertools
import math
import weakref
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import TemporalConvLayer
from peft.tuners.lora import LoraLayer
from torch import nn

from models.hooks import Patch, wrap_forward
from models.placement import is_plain

REPEATS = "text_repeats"  # how the attentions learn how many neighbouring rows hold the same text
FEW_TOKENS = 16  # below, torch's attention kernel and its softmax cost more than the products
FEW_PIXELS = 4  # below, a convolution costs more than copying its input into the rows of a matrix
LARGEST_MATRIX = 1 << 20  # entries that a convolution may become, 4 MB


def attach_lean(network: nn.Module, parts: Iterable[str] | None = None) -> Patch:
    """Make `network` lean until the patch is removed; `parts` are names of PARTS, default all.

    Attach it after the adapters: LoRA layers that come later are left as they are. Nothing is patched but fp32 on a
    CPU. In half precision W + B A rounds to the digits of W, which loses 16 % of a typical motion LoRA; and on a GPU
    cuDNN and the fused attention kernels are better than what replaces them here. Weights that are made when they are
    read (models/placement.py) are left alone too: what is kept of one here would outlive it.
    """
    parameter = next(network.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not all(map(is_plain, network.modules())):
        return Patch()
    chosen = [layer for name in (PARTS if parts is None else parts) for layer in PARTS[name].items()]
    undo = []
    for module in network.modules():
        for kind, make in chosen:
            if isinstance(module, kind):
                # innermost: bypass, checkpointing and embeddings stay around it, in whatever order they come
                undo.append(wrap_forward(module, partial(_call, weakref.ref(module), make()), innermost=True))
    return Patch(undo)


def _call(reference: weakref.ref, forward: Callable, stock: Callable, *args, **kwargs) -> torch.Tensor:
    return forward(reference(), stock, *args, **kwargs)


def _merged_linear(layer: LoraLayer, stock: Callable, x: torch.Tensor) -> torch.Tensor:
    """W x + sum of scale B A x over the adapters that act, as (W + sum of scale B A) x where that is cheaper."""
    base, acting = layer.base_layer, [name for name in layer.active_adapters if name in layer.lora_A]
    if not acting:
        return base(x)
    if not all(_is_bare(layer, name) for name in acting):
        return stock(x)
    if any(_drops(layer.lora_B[name]) for name in acting) or _is_cheaper_beside(layer, acting, x):
        result = base(x)
        for name in acting:
            result = result.add_(layer.lora_B[name](layer.lora_A[name](x)), alpha=layer.scaling[name])
        return result
    weight = base.weight
    for name in acting:
        up, down = layer.lora_B[name].acting, layer.lora_A[name].weight
        weight = torch.addmm(weight, up, down, alpha=layer.scaling[name])
    return F.linear(x, weight, base.bias)


def _is_cheaper_beside(layer: LoraLayer, acting: list[str], x: torch.Tensor) -> bool:
    """Do the adapters take fewer multiplications, of forward and backward together, beside the layer than in it?"""
    rows, (outs, ins) = x.numel() // x.shape[-1], layer.base_layer.weight.shape
    beside = merged = 0
    for name in acting:
        rank, trained = len(layer.lora_A[name].weight), layer.lora_B[name].weight.requires_grad
        trained &= torch.is_grad_enabled()
        beside += rows * (ins + outs) * rank * (3 if trained else 1)
        merged += ins * outs * (rows + 3 * rank if trained else rank)
    return beside < merged


def _is_bare(layer: LoraLayer, name: str) -> bool:
    """Is this adapter nothing but two matrices? peft's dropout stands before them; a hook may hang on them."""
    modules = layer.base_layer, layer.lora_A[name], layer.lora_B[name]
    hooked = any(m._forward_hooks or m._forward_pre_hooks or "_forward_wrappers" in m.__dict__ for m in modules)
    return isinstance(layer.lora_dropout[name], nn.Identity) and not hooked


def _drops(up: nn.Module) -> bool:
    """Does dropout stand between the product and the layer's output (models/lora.py: Matrix)?"""
    return bool(up.training and up.dropout)


def _tell_repeats(
    unet: nn.Module, stock: Callable, sample: torch.Tensor, timestep, text: torch.Tensor, *args, **kwargs
):
    """The U-Net repeats each text for every frame; expanded ones, as several timesteps of one clip have, are one."""
    copies = len(text) if text.stride(0) == 0 else 1
    given = kwargs.pop("cross_attention_kwargs", None) or {}
    told = {**given, REPEATS: sample.shape[2] * copies}
    return stock(sample, timestep, text, *args, cross_attention_kwargs=told, **kwargs)


def _attend(
    attn: Attention, stock: Callable, x: torch.Tensor, encoder_hidden_states=None, attention_mask=None, **kwargs
) -> torch.Tensor:
    repeats, text = kwargs.pop(REPEATS, 1), encoder_hidden_states
    if attention_mask is not None or kwargs or not _is_plain(attn):
        return stock(x, text, attention_mask, **kwargs)
    context = x if text is None else text[::repeats]
    query, key, value = attn.to_q(x), attn.to_k(context), attn.to_v(context)
    # [s l c] -> [b heads l d], b the sequences of the context: what shares a text is one sequence of queries
    query, key, value = (
        t.view(len(context), -1, attn.heads, t.shape[-1] // attn.heads).transpose(1, 2) for t in (query, key, value)
    )
    if text is None and query.shape[2] <= FEW_TOKENS:
        mixed = ShortAttention.apply(*(t.flatten(0, 1) for t in (query, key, value))).view_as(query)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    mixed = mixed.transpose(1, 2).reshape(*x.shape[:2], -1)
    return attn.to_out[1](attn.to_out[0](mixed))


def _is_plain(attn: Attention) -> bool:
    """Is this attention projections, softmax and output alone, as all of this family's are?"""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k, attn.residual_connection)
    known = type(attn.processor) is AttnProcessor2_0 and attn.rescale_output_factor == 1
    return known and not any(extra not in (None, False) for extra in extras)


class ShortAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v for q, k and v [n l d]; torch's own softmax takes longer than both products here."""

    @staticmethod
    def forward(ctx, query, key, value):
        ctx.scale = query.shape[-1] ** -0.5
        weights = _scaled_product(query, key, ctx.scale)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        weights.div_(weights.sum(-1, keepdim=True))
        ctx.save_for_backward(query, key, value, weights)
        return torch.bmm(weights, value)

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, weights = ctx.saved_tensors
        of_value = torch.bmm(weights.transpose(1, 2), gradient)
        of_logits = _scaled_product(gradient, value, ctx.scale).mul_(weights)
        of_logits.sub_(weights * of_logits.sum(-1, keepdim=True))
        return torch.bmm(of_logits, key), torch.bmm(of_logits.transpose(1, 2), query), of_value


def _scaled_product(a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale a b^T, [n l d] and [n m d] -> [n l m]."""
    return torch.baddbmm(a.new_empty(()), a, b.transpose(1, 2), beta=0, alpha=scale)


def _gate(geglu: GEGLU, stock: Callable, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    return Gate.apply(geglu.proj(x))


class Gate(torch.autograd.Function):
    """a gelu(b) for [... a b]. Autograd would make both halves of the gradient and then copy them together."""

    @staticmethod
    def forward(ctx, both):
        hidden, gate = both.chunk(2, dim=-1)
        activation = F.gelu(gate)
        ctx.save_for_backward(both, activation)
        return hidden * activation

    @staticmethod
    def backward(ctx, gradient):
        both, activation = ctx.saved_tensors
        hidden, gate = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        of_hidden, of_gate = result.chunk(2, dim=-1)
        torch.mul(gradient, activation, out=of_hidden)
        torch.ops.aten.gelu_backward.grad_input(gradient * hidden, gate, grad_input=of_gate)
        return result


class SmallConvolution:
    """A convolution that takes images of at most 2x2 pixels through one matrix, which is kept while its weight is."""

    def __init__(self):
        self.made_for, self.matrix, self.bias = None, None, None

    def __call__(self, conv: nn.Conv2d, stock: Callable, x: torch.Tensor) -> torch.Tensor:
        (n, channels, height, width), weight = x.shape, conv.weight
        outs = [
            (side + 2 * padding - kernel) // stride + 1
            for side, padding, kernel, stride in zip((height, width), conv.padding, conv.kernel_size, conv.stride)
        ]
        entries = math.prod(outs) * conv.out_channels * channels * height * width
        if height * width > FEW_PIXELS or weight.requires_grad or entries > LARGEST_MATRIX:
            return stock(x)
        given = height, width, weight.data_ptr(), weight._version
        if given != self.made_for:
            self.matrix = _as_matrix(conv, height, width, outs)
            self.bias = None if conv.bias is None else conv.bias.repeat_interleave(math.prod(outs))
            self.made_for = given
        return F.linear(x.reshape(n, -1), self.matrix, self.bias).view(n, -1, *outs)


def _as_matrix(conv: nn.Conv2d, height: int, width: int, outs: list[int]) -> torch.Tensor:
    """[(o rows columns) (c height width)]: an output pixel's row holds the part of the kernel that meets the image."""
    weight = conv.weight.detach()
    matrix = weight.new_zeros(len(weight), *outs, weight.shape[1], height, width)
    for row, column, y, x in itertools.product(*map(range, (*outs, height, width))):
        i, j = y + conv.padding[0] - row * conv.stride[0], x + conv.padding[1] - column * conv.stride[1]
        if 0 <= i < weight.shape[2] and 0 <= j < weight.shape[3]:
            matrix[:, row, column, :, y, x] = weight[:, :, i, j]
    return matrix.flatten(3).flatten(0, 2)


def _convolve_frames(layer: TemporalConvLayer, stock: Callable, x: torch.Tensor, num_frames: int = 1) -> torch.Tensor:
    """x [(b f) c h w]; norm, silu, dropout and convolution of each stage on [b c f pixels]."""
    n, channels, height, width = x.shape
    stages = [list(stage) for stage in (layer.conv1, layer.conv2, layer.conv3, layer.conv4)]  # slices are modules
    if any(stage[-1].weight.requires_grad for stage in stages):
        return stock(x, num_frames=num_frames)
    clip = x.reshape(-1, num_frames, channels, height * width).transpose(1, 2)
    hidden = clip
    for *parts, convolution in stages:
        for part in parts:
            hidden = part(hidden)
        kernel, bias = convolution.weight.flatten(2), convolution.bias  # [o c 3]
        if height * width <= FEW_PIXELS:
            hidden = FrameProduct.apply(hidden, kernel, bias)
        else:
            hidden = F.conv2d(hidden, kernel[..., None], bias, padding=(1, 0))
    return (clip + hidden).transpose(1, 2).reshape(n, channels, height, width)


class FrameProduct(torch.autograd.Function):
    """Convolution of x [b c f pixels] over frames with a frozen kernel [o c 3], as one product of rows."""

    @staticmethod
    def forward(ctx, x, kernel, bias):
        ctx.kernel = kernel
        return _product_over_frames(x, kernel, bias)

    @staticmethod
    def backward(ctx, gradient):
        return _product_over_frames(gradient, ctx.kernel.flip(2).transpose(0, 1), None), None, None


def _product_over_frames(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rows = F.pad(x.permute(0, 3, 2, 1), (0, 0, 1, 1))  # [b pixels f+2 c]
    neighbours = torch.cat([rows[:, :, :-2], rows[:, :, 1:-1], rows[:, :, 2:]], dim=-1)
    return F.linear(neighbours, kernel.transpose(1, 2).flatten(1), bias).permute(0, 3, 2, 1)


# part -> its layers, each with what makes their forward: (module, stock forward, *arguments of the stock forward)
PARTS: dict[str, dict[type[nn.Module], Callable[[], Callable]]] = {
    "lora": {LoraLayer: lambda: _merged_linear},
    "attention": {UNet3DConditionModel: lambda: _tell_repeats, Attention: lambda: _attend},
    "geglu": {GEGLU: lambda: _gate},
    "convolution": {nn.Conv2d: SmallConvolution},
    "temporal": {TemporalConvLayer: lambda: _convolve_frames},
}
