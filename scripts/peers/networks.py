"""The networks in PyTorch, for checks and comparisons: Compact and SPAN are here, the others come from `paragonsr2_torch`, with a
choice of how attention is computed. Depends on torch alone. The state_dict names are those of published files, so checkpoints load
with strict=True either way.

    net = build("span", scale=2, features=48)     # x (N, 3, H, W) in 0..1 -> (N, 3, H*scale, W*scale)
"""

import torch
import torch.nn.functional as F
from torch import nn

from paragonsr2_torch import (
    TokenCrossAttention,
    WindowAttention,
    paragonsr2_photo,
    paragonsr2_pro,
    paragonsr2_realtime,
    paragonsr2_stream,
)


def conv3x3(i, o):
    return nn.Conv2d(i, o, 3, padding=1)


class Compact(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN (Xintao Wang): a chain of convolutions with PReLU, at LQ size, added to the enlarged input."""

    def __init__(self, scale=2, features=64, convolutions=16):
        super().__init__()
        self.scale = scale
        layers = [conv3x3(3, features), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [conv3x3(features, features), nn.PReLU(features)]
        self.body = nn.Sequential(*layers, conv3x3(features, 3 * scale * scale))

    def forward(self, x):
        return F.pixel_shuffle(self.body(x), self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


class Conv3XC(nn.Module):
    """A 3x3 convolution a -> b, trained as a sum of two linear paths: 1x1 (`sk`), and 1x1, 3x3, 1x1 through twice the channels (`conv`).

    In training both paths are computed, as its author does; for inference it is the one convolution that equals them, whose
    tensors are also stored (`eval_conv`). With `composed`, training too computes that one convolution, and autograd carries its
    gradient back to the paths.
    """

    def __init__(self, i, o, composed):
        super().__init__()
        self.composed = composed
        self.sk = nn.Conv2d(i, o, 1)
        # unpadded: the input is padded before the first of them, so the border carries that one's bias
        self.conv = nn.Sequential(nn.Conv2d(i, 2 * i, 1), nn.Conv2d(2 * i, 2 * o, 3), nn.Conv2d(2 * o, o, 1))
        self.eval_conv = conv3x3(i, o).requires_grad_(False)

    def compose(self):
        """Weight [o, i, 3, 3] and bias [o] of the convolution that equals both paths.

        At the border too: there the inner 3x3 reads the bias of the first 1x1, as it does inside the image.
        """
        first, middle, last = self.conv
        outer = torch.einsum("om,mkyx->okyx", last.weight[:, :, 0, 0], middle.weight)
        weight = torch.einsum("okyx,ki->oiyx", outer, first.weight[:, :, 0, 0])
        weight = weight + F.pad(self.sk.weight, (1, 1, 1, 1))
        bias = outer.sum((2, 3)) @ first.bias + last.weight[:, :, 0, 0] @ middle.bias + last.bias + self.sk.bias
        return weight, bias

    def train(self, mode=True):
        if not mode:
            with torch.no_grad():
                for stored, computed in zip((self.eval_conv.weight, self.eval_conv.bias), self.compose()):
                    stored.copy_(computed)
        return super().train(mode)

    def forward(self, x):
        if not self.training:
            return self.eval_conv(x)
        if self.composed:
            weight, bias = self.compose()
            return F.conv2d(x, weight, bias, padding=1)
        return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)


class SwiftAttentionBlock(nn.Module):
    """SPAB: three convolutions, whose result decides by itself how much of it passes. Returns the output and the first activation."""

    def __init__(self, features, composed):
        super().__init__()
        self.c1_r = Conv3XC(features, features, composed)
        self.c2_r = Conv3XC(features, features, composed)
        self.c3_r = Conv3XC(features, features, composed)

    def forward(self, x):
        first = F.silu(self.c1_r(x))
        third = self.c3_r(F.silu(self.c2_r(first)))
        return (third + x) * (torch.sigmoid(third) - 0.5), first


class Span(nn.Module):
    """Swift Parameter-free Attention Network (Wan et al., NTIRE 2024). `norm`: the mean of the DIV2K images is subtracted first."""

    def __init__(self, scale=2, features=48, norm=False, composed=False):
        super().__init__()
        self.norm, self.scale = norm, scale
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1), persistent=False)
        if not norm:
            self.register_buffer("no_norm", torch.zeros(1))  # how a file says so
        self.conv_1 = Conv3XC(3, features, composed)
        for k in range(1, 7):
            self.add_module(f"block_{k}", SwiftAttentionBlock(features, composed))
        self.conv_cat = nn.Conv2d(4 * features, features, 1)
        self.conv_2 = Conv3XC(features, features, composed)
        self.upsampler = nn.Sequential(conv3x3(features, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x):
        if self.norm:
            x = (x - self.mean) * 255
        f = self.conv_1(x)
        first_block, _ = self.block_1(f)
        y = first_block
        for k in range(2, 7):
            y, activation = getattr(self, f"block_{k}")(y)
        return self.upsampler(self.conv_cat(torch.cat((f, self.conv_2(y), first_block, activation), 1)))


def attend_by_softmax(q, k, v):
    """softmax(q k^T / sqrt(d)) v for (..., tokens, d) as two products with the weights between them in memory."""
    return torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), -1) @ v


NETWORKS = {
    "nano": paragonsr2_realtime,
    "stream": paragonsr2_stream,
    "photo": paragonsr2_photo,
    "pro": paragonsr2_pro,
    "compact": Compact,
    "span": Span,
}
# name -> softmax(q k^T / sqrt(d)) v of window attention. On a processor the fused form is the faster in float32; in bf16 its gradient
# can be the slower.
ATTENTION = {"fused": F.scaled_dot_product_attention, "softmax": attend_by_softmax}


def build(name, scale, attention="fused", **sizes):
    """The network `name` (a key of `cases.CASES`) at its start values; `attention`: a key of `ATTENTION`."""
    net = NETWORKS[name](scale=scale, **sizes)
    for module in net.modules():
        if isinstance(module, WindowAttention):
            module.attend = ATTENTION[attention]
        elif isinstance(module, TokenCrossAttention):
            # PyTorch has no fused form on a processor where keys and values differ in width, as they do here.
            module.attend = attend_by_softmax
    return net
