"""Small networks of our own, one for each kind of structure that the libraries' lists leave out."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.network import Network, images

WORDS, TOKENS, CATEGORIES = 80, 12, (30, 40, 50)


def own() -> list[Network]:
    """Every network of this file."""
    listed: list[tuple[str, Callable[[], nn.Module], Callable[[int], Any]]] = [
        ("unet", UNet, images(32)),
        ("super_resolution", SuperResolution, images(16)),
        ("conv3d", Conv3d, lambda batch: torch.randn(batch, 1, 8, 16, 16)),
        ("wavenet", WaveNet, lambda batch: torch.randn(batch, 1, 64)),
        ("lstm_tagger", LstmTagger, _words),
        ("lstm_tagger_batch_second", partial(LstmTagger, batch_first=False), _words),
        ("gru_attention", GruAttention, _words),
        ("dlrm", Recommender, _clicks),
        ("transposed_autoencoder", Autoencoder, images(32)),
    ]
    return [Network("others", name, build, example) for name, build, example in listed]


class UNet(nn.Module):
    """Encoder and decoder joined by concatenations, with transposed convolutions going up.

    Reference: Ronneberger et al., U-Net, 2015, figure 1, two levels of it.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = _twice(3, width)
        self.down2 = _twice(width, 2 * width)
        self.bottom = _twice(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.join2 = _twice(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join1 = _twice(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[n, 2, h, w]` of images `[n, 3, h, w]`."""
        first = self.down1(x)
        second = self.down2(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.max_pool2d(second, 2))
        second = self.join2(torch.cat([self.up2(bottom), second], 1))
        first = self.join1(torch.cat([self.up1(second), first], 1))
        return cast(Tensor, self.out(first))


class SuperResolution(nn.Module):
    """Residual blocks and two pixel shuffles, four times as many pixels a side.

    Reference: Lim et al., EDSR, 2017, figure 3; Shi et al., ESPCN, 2016.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(2)
        )
        self.grow = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[n, 3, 4h, 4w]` of images `[n, 3, h, w]`."""
        x = self.head(x)
        for block in self.blocks:
            x = x + 0.1 * block(x)
        return cast(Tensor, self.tail(self.grow(x)))


class Conv3d(nn.Module):
    """A small classifier of volumes, with a grouped convolution."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv3d(1, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(width, 2 * width, 3, padding=1, groups=4),
            nn.GroupNorm(4, 2 * width),
            nn.SiLU(),
            nn.Conv3d(2 * width, 2 * width, 1),
            nn.AdaptiveAvgPool3d(2),
        )
        self.classifier = nn.Linear(2 * width * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 5]` of volumes `[n, 1, d, h, w]`."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))


class WaveNet(nn.Module):
    """Dilated causal 1-D convolutions with gates, residual and skip paths.

    Reference: van den Oord et al., WaveNet, 2016, figure 4.
    """

    def __init__(self, width: int = 16, layers: int = 4) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skip = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(layers))
        self.end = nn.Sequential(
            nn.ReLU(), nn.Conv1d(2 * width, 2 * width, 1), nn.ReLU(), nn.Conv1d(2 * width, 8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 8, t]` of waves `[n, 1, t]`."""
        x = self.start(x)
        skips = []
        for i, (dilated, residual, skip) in enumerate(
            zip(self.dilated, self.residual, self.skip, strict=True)
        ):
            value, gate = dilated(functional.pad(x, (2**i, 0))).chunk(2, dim=1)
            z = torch.tanh(value) * torch.sigmoid(gate)
            skips.append(skip(z))
            x = x + residual(z)
        return cast(Tensor, self.end(torch.stack(skips).sum(0)))


class LstmTagger(nn.Module):
    """A bidirectional LSTM of two layers over embedded words, and a tag for each."""

    def __init__(self, width: int = 24, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=batch_first)
        self.tag = nn.Linear(2 * width, 7)
        self.batch_first = batch_first

    def forward(self, words: Tensor) -> Tensor:
        """Logits `[n, t, 7]` of word numbers `[n, t]`."""
        x = self.embed(words)
        x, _ = self.lstm(x if self.batch_first else x.transpose(0, 1))
        return cast(Tensor, self.tag(x if self.batch_first else x.transpose(0, 1)))


class GruAttention(nn.Module):
    """A GRU that reads, and one that writes while it attends to what was read.

    Reference: Bahdanau et al., 2015, appendix A; dot-product scores.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.reader = nn.GRU(width, width, num_layers=2, batch_first=True)
        self.writer = nn.GRUCell(2 * width, width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(2 * width, 9)

    def forward(self, words: Tensor) -> Tensor:
        """Logits `[n, 4, 9]` of word numbers `[n, t]`."""
        x = self.embed(words)
        read, last = self.reader(x)
        state, written = last[-1], []
        for step in range(4):
            weights = torch.softmax(torch.einsum("nd,ntd->nt", self.query(state), read), dim=1)
            context = torch.einsum("nt,ntd->nd", weights, read)
            state = self.writer(torch.cat([x[:, step], context], 1), state)
            written.append(self.out(torch.cat([state, context], 1)))
        return torch.stack(written, 1)


class Recommender(nn.Module):
    """Embedded categories and projected numbers, their pairwise products, and a perceptron on top.

    Reference: Naumov et al., DLRM, 2019, figure 1.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in CATEGORIES)
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        pairs = (len(CATEGORIES) + 1) * len(CATEGORIES) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 32), nn.ReLU(), nn.Linear(32, 1))
        self.upper: Tensor
        self.register_buffer("upper", torch.triu_indices(len(CATEGORIES) + 1, len(CATEGORIES) + 1, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Logits `[n, 1]` of numbers `[n, 13]` and category numbers `[n, 3]`."""
        dense = self.bottom(numbers)
        looked_up = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        x = torch.stack([dense, *looked_up], 1)
        products = x @ x.transpose(1, 2)
        pairs = products[:, self.upper[0], self.upper[1]]
        return cast(Tensor, self.top(torch.cat([dense, pairs], 1)))


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up, instance norms between."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.InstanceNorm2d(width, affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.PReLU(2 * width),
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images of images `[n, 3, h, w]`."""
        return cast(Tensor, self.decode(self.encode(x)))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    def once(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(*once(inputs), *once(outputs))


def _words(batch: int) -> Tensor:
    return torch.randint(0, WORDS, (batch, TOKENS))


def _clicks(batch: int) -> tuple[Tensor, Tensor]:
    categories = torch.stack([torch.randint(0, size, (batch,)) for size in CATEGORIES], 1)
    return torch.randn(batch, 13), categories
