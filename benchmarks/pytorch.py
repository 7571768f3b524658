"""A distillation step in plain PyTorch, with the networks written as PyTorch users write them, to compare ours with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> list:
    """A padded convolution and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(outputs)]


class Add(nn.Module):
    """Branch plus shortcut, then `after`."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, after: nn.Module):
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after

    def forward(self, x):
        return self.after(self.branch(x) + self.shortcut(x))


class WideBlock(nn.Module):
    """BN-ReLU-conv twice; where the width changes the activated input also feeds a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.enter = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        active = self.enter(x)
        return self.branch(active) + (x if self.shortcut is None else self.shortcut(active))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit, strided or not."""

    def __init__(self, inputs: int, outputs: int, down: bool):
        super().__init__()
        self.down, half = down, outputs // 2
        entry = inputs if down else half
        self.left = nn.Sequential(*conv_bn(entry, entry, 3, 2, entry), *conv_bn(entry, half, 1), nn.ReLU())
        if not down:
            self.left = nn.Identity()
        self.right = nn.Sequential(
            *conv_bn(entry, half, 1), nn.ReLU(), *conv_bn(half, half, 3, 2 if down else 1, half),
            *conv_bn(half, half, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        left, right = (x, x) if self.down else x.chunk(2, 1)
        y = torch.cat([self.left(left), self.right(right)], 1)
        batch, channels, height, width = y.shape
        return y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def _end(features: int, classes: int) -> list:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet(depth: int, widths: tuple[int, int, int, int], classes: int) -> nn.Module:
    """6n + 2 layers of basic blocks with 1x1 shortcuts."""
    layers, inputs = [*conv_bn(3, widths[0]), nn.ReLU()], widths[0]
    for stage, outputs in enumerate(widths[1:]):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            branch = nn.Sequential(*conv_bn(inputs, outputs, 3, stride), nn.ReLU(), *conv_bn(outputs, outputs))
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride))
            layers.append(Add(branch, shortcut, nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, *_end(inputs, classes))


def wrn(depth: int, width: int, classes: int) -> nn.Module:
    """Pre-activation blocks in three groups."""
    layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)], 16
    for group in range(3):
        for block in range((depth - 4) // 6):
            outputs = 16 * width * 2**group
            layers.append(WideBlock(inputs, outputs, 2 if group and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), *_end(inputs, classes))


def vgg13(classes: int) -> nn.Module:
    """Two convolutions in each of five blocks; pooling after the first three."""
    layers, inputs = [], 3
    for block, outputs in enumerate((64, 128, 256, 512, 512)):
        layers += [*conv_bn(inputs, outputs, bias=True), nn.ReLU(), *conv_bn(outputs, outputs, bias=True), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if block < 3 else []
        inputs = outputs
    return nn.Sequential(*layers, *_end(inputs, classes))


def mobilenetv2(classes: int) -> nn.Module:
    """Half width, ReLU, strided stem."""
    layers, inputs = [*conv_bn(3, 16, 3, 2), nn.ReLU()], 16
    groups = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
    for expansion, outputs, blocks, first_stride in groups:
        for block in range(blocks):
            stride, hidden = 1 if block else first_stride, inputs * expansion
            branch = nn.Sequential(
                *conv_bn(inputs, hidden, 1), nn.ReLU(), *conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU(),
                *conv_bn(hidden, outputs, 1),
            )  # fmt: skip
            same = stride == 1 and inputs == outputs
            layers.append(Add(branch, nn.Identity(), nn.Identity()) if same else branch)
            inputs = outputs
    return nn.Sequential(*layers, *conv_bn(inputs, 1280, 1), nn.ReLU(), *_end(1280, classes))


def shufflev2(classes: int) -> nn.Module:
    """Full width, 1x1 stem."""
    layers, inputs = [*conv_bn(3, 24, 1), nn.ReLU()], 24
    for outputs, units in ((116, 4), (232, 8), (464, 4)):
        for unit in range(units):
            layers.append(ShuffleUnit(inputs, outputs, not unit))
            inputs = outputs
    return nn.Sequential(*layers, *conv_bn(inputs, 1024, 1), nn.ReLU(), *_end(1024, classes))


def make(name: str, classes: int = 100) -> nn.Module:
    """The network of the config name."""
    small, large = (16, 16, 32, 64), (32, 64, 128, 256)
    return {
        'resnet8': lambda: resnet(8, small, classes),
        'resnet20': lambda: resnet(20, small, classes),
        'resnet56': lambda: resnet(56, small, classes),
        'resnet32x4': lambda: resnet(32, large, classes),
        'wrn_16_2': lambda: wrn(16, 2, classes),
        'wrn_40_2': lambda: wrn(40, 2, classes),
        'vgg13': lambda: vgg13(classes),
        'mobilenetv2': lambda: mobilenetv2(classes),
        'shufflev2': lambda: shufflev2(classes),
    }[name]()


class TorchStep:
    """Teacher and student forward, 0.1 * CE + 0.9 * KD at T = 4, backward, SGD, and the student's entropy.

    With teacher '' the loss is CE. The batch lies ready in memory, normalised: loading, mixing and augmentation, which
    our step includes, cost nothing.
    """

    def __init__(self, teacher: str, student: str, batch: int, channels_last: bool):
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.teacher = make(teacher).eval().to(memory_format=layout) if teacher else None
        self.student = make(student).train().to(memory_format=layout)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.image = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
        self.label = torch.randint(100, (batch,))

    def __call__(self) -> torch.Tensor:
        student = self.student(self.image)
        loss = F.cross_entropy(student, self.label)
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(self.image)
            soft = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction='batchmean') * 16
            loss = 0.1 * loss + 0.9 * soft
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            log_p = F.log_softmax(student, 1)
            return -(log_p.exp() * log_p).sum(1)
