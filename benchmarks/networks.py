"""Small networks in the shapes of AlexNet, VGG, ResNet and MobileNet.

Written after the papers' tables, with the names and in-place operations of
torchvision's networks, so that what runs here runs there; at ``width=64`` and with
``stem="imagenet"`` the ResNets are as large as the originals.
"""

from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of the images of the ResNet-20, in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
BASIC, BOTTLENECK = (3, 3), (1, 3, 1)  # sizes of the kernels of a residual block


class Classifier(nn.Module):
    """Layers ``features``, a pool to a grid, and a ``classifier``."""

    def __init__(self, features, grid, classifier):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def alexnet(n_classes=10, channels=3, width=32, dropout=0.5):
    """Five convolutions, three linear layers; strides and kernels for 32×32 images."""
    modules = []
    for index, factor in enumerate((1, 3, 6, 4, 4)):
        size, kernel = factor * width, 5 if index < 2 else 3
        modules += [nn.Conv2d(channels, size, kernel, padding=kernel // 2)]
        modules += [nn.ReLU(inplace=True)]
        if index in (0, 1, 4):
            modules += [nn.MaxPool2d(3, stride=2)]
        channels = size
    classifier = []
    for n_inputs in (4 * channels, 8 * width):
        classifier += [nn.Dropout(dropout), nn.Linear(n_inputs, 8 * width)]
        classifier += [nn.ReLU(inplace=True)]
    return Classifier(modules, 2, [*classifier, nn.Linear(8 * width, n_classes)])


class VGG(Classifier):
    """Stages of 3×3 convolutions, a pooling after each; with or without batch norm."""

    def __init__(self, stages, n_classes=10, channels=3, width=16, batch_norm=False):
        modules = []
        for stage, n_layers in enumerate(stages):
            size = width * min(2**stage, 8)
            for _ in range(n_layers):
                modules.append(nn.Conv2d(channels, size, 3, padding=1))
                if batch_norm:
                    modules.append(nn.BatchNorm2d(size))
                modules.append(nn.ReLU(inplace=True))
                channels = size
            modules.append(nn.MaxPool2d(2, ceil_mode=True))
        head = [nn.Linear(channels, channels), nn.ReLU(True), nn.Dropout()]
        super().__init__(modules, 1, [*head, nn.Linear(channels, n_classes)])
        _initialise(self)


vgg11 = partial(VGG, (1, 1, 2, 2, 2))
vgg16 = partial(VGG, (2, 2, 3, 3, 3))


class Block(nn.Module):
    """Convolutions with batch norm beside a shortcut."""

    def __init__(self, kernels, channels, size, stride, pad=False):
        super().__init__()
        outputs = block_outputs(kernels, size)
        sizes = [channels, *(len(kernels) - 1) * [size], outputs]
        self.n_layers = len(kernels)
        for index, kernel in enumerate(kernels):
            step = stride if index == kernels.index(3) else 1
            layer = convolution(*sizes[index : index + 2], kernel, step)
            setattr(self, f"conv{index + 1}", layer)
            setattr(self, f"bn{index + 1}", nn.BatchNorm2d(layer.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if pad:
            self.downsample = Padding(stride, (outputs - channels) // 2)
        elif stride > 1 or channels != outputs:
            layer = convolution(channels, outputs, 1, stride)
            self.downsample = nn.Sequential(layer, nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = x
        for number in range(1, self.n_layers + 1):
            layer, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            out = norm(layer(out))
            if number < self.n_layers:
                out = self.relu(out)
        out += self.downsample(x)
        return self.relu(out)


def convolution(channels, size, kernel_size, stride=1, **options):
    """Return a convolution that keeps the size of maps but for its stride."""
    options |= {"padding": kernel_size // 2, "bias": False}
    return nn.Conv2d(channels, size, kernel_size, stride, **options)


def block_outputs(kernels, size):
    """Return the channels of a block of convolutions of ``size`` filters."""
    return size if kernels == BASIC else 4 * size


class Padding(nn.Module):
    """Shortcut that drops pixels and pads channels with zeros."""

    def __init__(self, stride, margin):
        super().__init__()
        self.stride, self.margin = stride, margin

    def forward(self, x):
        margins = (0, 0, 0, 0, self.margin, self.margin)
        return functional.pad(x[:, :, :: self.stride, :: self.stride], margins)


class ResNet(nn.Module):
    """Stages of residual blocks, of `BASIC` or `BOTTLENECK` kernels."""

    def __init__(
        self, kernels, stages, n_classes=10, channels=3, width=16, stem="", pad=False
    ):
        super().__init__()
        imagenet = stem == "imagenet"
        self.conv1 = convolution(channels, width, *((7, 2) if imagenet else (3, 1)))
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        self.n_stages, channels = len(stages), width
        for stage, n_blocks in enumerate(stages):
            size, blocks = width * 2**stage, []
            for number in range(n_blocks):
                stride = 2 if stage and not number else 1
                blocks.append(Block(kernels, channels, size, stride, pad))
                channels = block_outputs(kernels, size)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, n_classes)
        _initialise(self)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.n_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


resnet18 = partial(ResNet, BASIC, (2, 2, 2, 2))
resnet50 = partial(ResNet, BOTTLENECK, (3, 4, 6, 3))


class ResNet20(ResNet):
    """ResNet for CIFAR of He et al. (2016), table 6, with shortcuts of option A.

    Takes images in [0, 1]; normalising them is its first step.
    """

    def __init__(self):
        super().__init__(BASIC, (3, 3, 3), pad=True)
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            tensor = torch.tensor(value).reshape(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x):
        return super().forward((x - self.mean) / self.std)


resnet20 = ResNet20


class MobileNet(nn.Module):
    """Depthwise k×k and pointwise 1×1 convolutions in turn; a stride of 2 doubles."""

    def __init__(
        self, n_classes=10, channels=3, width=8, strides=(1, 2), kernel_size=3, stem=2
    ):
        super().__init__()
        modules = [convolution(channels, width, 3, stem)]
        for index, stride in enumerate(strides):
            wide = width * 2 if stride > 1 or index == 0 else width
            modules += [
                nn.BatchNorm2d(width),
                nn.ReLU6(inplace=True),
                convolution(width, width, kernel_size, stride, groups=width),
                nn.BatchNorm2d(width),
                nn.ReLU6(inplace=True),
                convolution(width, wide, 1),
            ]
            width = wide
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


mobilenet = MobileNet  # two of its pairs of layers


def load_npz(network, path):
    """Load weights that were saved by their names; returns the network."""
    with np.load(path, allow_pickle=False) as arrays:
        state = {
            name.replace("linear.", "fc."): torch.from_numpy(arrays[name])
            for name in arrays
        }
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # which files do not have
            state.setdefault(name, value)
    network.load_state_dict(state)
    return network


def _initialise(network):
    """Draw the weights of convolutions as He et al. do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
