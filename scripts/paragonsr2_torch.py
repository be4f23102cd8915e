"""ParagonSR2 in PyTorch, all four variants, for checks and comparisons. Depends on torch only. The state_dict has the
names of the published models (architecture by Philip Hofmann), so their files and paragon's load with strict=True.

    net = paragonsr2_realtime(scale=2, upsampler_alpha=0.3)     # also _stream, _photo, _pro
    y = net(x)                                                  # x (N, 3, H, W) in 0..1 -> (N, 3, H*scale, W*scale)
"""

import torch
import torch.nn.functional as F
from torch import nn


def at_least_f32(x):
    """16-bit types become float32; float32 and float64 are unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FixedFilter(nn.Module):
    """A symmetric kernel along the rows, then along the columns, each channel by itself; never trained."""

    def __init__(self, taps):
        super().__init__()
        taps = torch.tensor(taps, dtype=torch.float32)
        k = len(taps)
        self.register_buffer("kernel", taps)
        self.h = nn.Conv2d(3, 3, (1, k), padding=(0, k // 2), groups=3, bias=False)
        self.v = nn.Conv2d(3, 3, (k, 1), padding=(k // 2, 0), groups=3, bias=False)
        with torch.no_grad():
            self.h.weight.copy_(taps.view(1, 1, 1, k).expand(3, 1, 1, k))
            self.v.weight.copy_(taps.view(1, 1, k, 1).expand(3, 1, k, 1))
        self.requires_grad_(False)

    def forward(self, x):
        return self.v(self.h(x))


class MagicKernelUpsampler(nn.Module):
    """Magic Kernel Sharp 2021 (J. Costella): sharpen by alpha, repeat every pixel, blur."""

    def __init__(self, scale, alpha):
        super().__init__()
        self.scale, self.alpha = scale, alpha
        self.sharp = FixedFilter([-1 / 32, 0, 9 / 32, 16 / 32, 9 / 32, 0, -1 / 32])
        self.blur = FixedFilter([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16])

    def forward(self, x):
        if self.alpha > 0:
            x = x + self.alpha * (self.sharp(x) - x)
        return self.blur(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


class LayerScale(nn.Module):
    """A learned gain per channel, small at the start."""

    def __init__(self, features):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, features, 1, 1), 1e-5))

    def forward(self, x):
        return x * self.gamma


class RMSNorm(nn.Module):
    """Root-mean-square norm over the channels of every pixel; mean and root at least in float32."""

    def __init__(self, features):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(features, 1, 1))

    def forward(self, x):
        wide = at_least_f32(x)
        root = torch.sqrt(wide.square().mean(1, keepdim=True) + 1e-6)
        return (self.scale * (wide / root) + self.bias).to(x.dtype)


def conv1x1(i, o):
    return nn.Conv2d(i, o, 1)


def depthwise(c, dilation=1):
    return nn.Conv2d(c, c, 3, padding=dilation, dilation=dilation, groups=c)


class NanoBlock(nn.Module):
    def __init__(self, features, index, window):
        super().__init__()
        self.conv1 = conv1x1(features, 2 * features)
        self.dw = depthwise(2 * features)
        self.conv2 = conv1x1(2 * features, features)
        self.scale = LayerScale(features)

    def forward(self, x):
        return x + self.scale(self.conv2(F.gelu(self.dw(self.conv1(x)))))


class StreamBlock(nn.Module):
    """Two receptive fields are fused; the nonlinearity is a product of two halves of the channels."""

    def __init__(self, features, index, window):
        super().__init__()
        hidden = 2 * features
        self.dw1 = depthwise(features)
        self.dw3 = depthwise(features, dilation=3)
        self.fuse = conv1x1(2 * features, features)
        self.proj = conv1x1(features, 2 * hidden)
        self.gate = depthwise(2 * hidden)
        self.out = conv1x1(hidden, features)
        self.scale = LayerScale(features)

    def forward(self, x):
        t = self.fuse(torch.cat((self.dw1(x), self.dw3(x)), 1))
        a, b = self.gate(self.proj(t)).chunk(2, 1)
        # The range of float16, so that the same network can run in it.
        product = (at_least_f32(a) * at_least_f32(b)).clamp(-65504, 65504).to(x.dtype)
        return x + self.scale(self.out(product))


class WindowAttention(nn.Module):
    """Self-attention in square windows, no mask and no position bias; padding pixels take part with the bias of qkv.

    `attend` may be replaced by another function of (q, k, v) with the same result.
    """

    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, features, window, shift, heads=4):
        super().__init__()
        self.window, self.shift, self.heads = window, shift, heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x):
        n, c, height, width = x.shape
        w, s = self.window, self.shift
        x = F.pad(x, (0, -width % w, 0, -height % w))
        rows, columns = x.shape[2] // w, x.shape[3] // w
        if s:
            x = x.roll((-s, -s), (2, 3))
        # (N, C, rows*w, columns*w) -> (windows, tokens, C)
        x = x.view(n, c, rows, w, columns, w).permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, c)
        q, k, v = self.qkv(x).view(-1, w * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = self.attend(q, k, v).transpose(1, 2).reshape(-1, w * w, c)
        x = self.proj(x)
        x = x.view(n, rows, columns, w, w, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, rows * w, columns * w)
        if s:
            x = x.roll((s, s), (2, 3))
        return x[:, :, :height, :width]


class PhotoBlock(nn.Module):
    def __init__(self, features, index, window):
        super().__init__()
        self.norm = RMSNorm(features)
        self.conv1 = conv1x1(features, 2 * features)
        self.dw = depthwise(2 * features)
        self.conv2 = conv1x1(2 * features, features)
        self.scale = LayerScale(features)  # of both residuals
        self.attn_norm = RMSNorm(features)
        self.attn = WindowAttention(features, window, window // 2 if index % 2 else 0)

    def forward(self, x):
        x = x + self.scale(self.conv2(F.gelu(self.dw(self.conv1(self.norm(x))))))
        return x + self.scale(self.attn(self.attn_norm(x)))


class ChannelAttention(nn.Module):
    def __init__(self, features):
        super().__init__()
        narrow = features // 16
        self.fc = nn.Sequential(nn.Linear(features, narrow, bias=False), nn.GELU(), nn.Linear(narrow, features, bias=False))

    def forward(self, x):
        return x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]


class TokenCrossAttention(nn.Module):
    """Every pixel looks up a learned dictionary of 64 tokens. `attend`: see `WindowAttention`."""

    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, features, tokens=64, key=16):
        super().__init__()
        self.token_dict = nn.Parameter(torch.randn(1, tokens, features) * 0.02)
        self.q_proj = nn.Linear(features, key)
        self.k_proj = nn.Linear(features, key)
        self.v_proj = nn.Linear(features, features)
        self.out_proj = nn.Linear(features, features)

    def forward(self, x):
        n, c, height, width = x.shape
        q = self.q_proj(x.flatten(2).transpose(1, 2))
        k = self.k_proj(self.token_dict).expand(n, -1, -1)
        v = self.v_proj(self.token_dict).expand(n, -1, -1)
        y = self.out_proj(self.attend(q, k, v))
        return y.transpose(1, 2).reshape(n, c, height, width)


class ProBlock(nn.Module):
    def __init__(self, features, index, window):
        super().__init__()
        self.norm1 = RMSNorm(features)
        self.conv1 = conv1x1(features, 2 * features)
        self.dw = depthwise(2 * features)
        self.conv2 = conv1x1(2 * features, features)
        self.scale1 = LayerScale(features)
        self.channel_attn = ChannelAttention(features)
        self.scale2 = LayerScale(features)
        self.norm3 = RMSNorm(features)
        self.window_attn = WindowAttention(features, window, window // 2 if index % 2 else 0)
        self.scale3 = LayerScale(features)
        self.norm4 = RMSNorm(features)
        self.token_ca = TokenCrossAttention(features)
        self.scale4 = LayerScale(features)

    def forward(self, x):
        x = x + self.scale1(self.conv2(F.gelu(self.dw(self.conv1(self.norm1(x))))))
        x = x + self.scale2(self.channel_attn(x))
        x = x + self.scale3(self.window_attn(self.norm3(x)))
        return x + self.scale4(self.token_ca(self.norm4(x)))


class Group(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x)


class ParagonSR2(nn.Module):
    """A classical upsampler plus a learned detail image. `groups` x `depth` blocks of `features` channels."""

    def __init__(self, block, features, groups, depth, scale, detail_gain, upsampler_alpha, window=16):
        super().__init__()
        self.base = MagicKernelUpsampler(scale, upsampler_alpha)
        self.conv_in = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(
            *(Group([block(features, g * depth + i, window) for i in range(depth)]) for g in range(groups))
        )
        self.conv_mid = nn.Conv2d(features, features, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(features, features * scale * scale, 3, padding=1), nn.PixelShuffle(scale))
        self.conv_out = nn.Conv2d(features, 3, 3, padding=1)
        self.detail_gain = nn.Parameter(torch.tensor(float(detail_gain)))

    def forward(self, x):
        detail = self.conv_out(self.up(self.conv_mid(self.body(self.conv_in(x)))))
        return self.base(x) + self.detail_gain * detail


def paragonsr2_realtime(scale=2, upsampler_alpha=0.3, detail_gain=0.05):
    """Nano: 16 features, 3 blocks."""
    return ParagonSR2(NanoBlock, 16, 1, 3, scale, detail_gain, upsampler_alpha)


def paragonsr2_stream(scale=2, upsampler_alpha=0.0, detail_gain=0.1):
    """32 features, 2 x 3 gated blocks."""
    return ParagonSR2(StreamBlock, 32, 2, 3, scale, detail_gain, upsampler_alpha)


def paragonsr2_photo(scale=2, upsampler_alpha=0.4, detail_gain=0.1, window=16):
    """64 features, 4 x 4 blocks with shifted-window attention."""
    return ParagonSR2(PhotoBlock, 64, 4, 4, scale, detail_gain, upsampler_alpha, window)


def paragonsr2_pro(scale=2, upsampler_alpha=0.4, detail_gain=0.1, window=16):
    """64 features, 6 x 6 blocks with channel, window and token attention."""
    return ParagonSR2(ProBlock, 64, 6, 6, scale, detail_gain, upsampler_alpha, window)


paragonsr2_nano, paragonsr2_tiny, paragonsr2_base = paragonsr2_realtime, paragonsr2_stream, paragonsr2_photo

VARIANTS = {
    name: factory
    for factory, names in [
        (paragonsr2_realtime, ("paragonsr2_realtime", "paragonsr2_nano", "nano", "realtime")),
        (paragonsr2_stream, ("paragonsr2_stream", "paragonsr2_tiny", "tiny", "stream")),
        (paragonsr2_photo, ("paragonsr2_photo", "paragonsr2_base", "base", "photo")),
        (paragonsr2_pro, ("paragonsr2_pro", "pro")),
    ]
    for name in names
}
