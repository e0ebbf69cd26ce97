"""Small networks in the shapes of AlexNet, VGG, ResNet and MobileNet.

Written after the papers' tables, with the modules, names and in-place operations that
torchvision's networks have, so that what runs here runs there; at ``width=64`` and
with ``stem="imagenet"`` the ResNets are as large as the originals.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

VGG_STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
}
# Of the images that the ResNet-20 was trained on, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEANS = (104.0, 117.0, 123.0)  # blue, green, red


class AlexNet(nn.Module):
    """Five convolutions, three linear layers; strides and kernels for 32×32 images."""

    def __init__(self, n_classes=10, channels=3, width=32, dropout=0.5):
        super().__init__()
        sizes = (width, 3 * width, 6 * width, 4 * width, 4 * width)
        self.features = nn.Sequential(
            nn.Conv2d(channels, sizes[0], 5, stride=1, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(sizes[0], sizes[1], 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(sizes[1], sizes[2], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(sizes[2], sizes[3], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(sizes[3], sizes[4], 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(4 * sizes[4], 8 * width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(8 * width, 8 * width),
            nn.ReLU(inplace=True),
            nn.Linear(8 * width, n_classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class VGG(nn.Module):
    """Stages of 3×3 convolutions, a pooling after each; with or without batch norm."""

    def __init__(self, stages, n_classes=10, channels=3, width=16, batch_norm=False):
        super().__init__()
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
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(channels, n_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels, size, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, size, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(size)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(size)
        self.downsample = _projection(channels, size, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, channels, size, stride):
        super().__init__()
        wide = size * self.expansion
        self.conv1 = nn.Conv2d(channels, size, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(size)
        self.conv2 = nn.Conv2d(size, size, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(size)
        self.conv3 = nn.Conv2d(size, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, wide, stride)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def _projection(channels, size, stride):
    """A shortcut that changes shape, or None where the shape stays."""
    if stride == 1 and channels == size:
        return None
    return nn.Sequential(
        nn.Conv2d(channels, size, 1, stride, bias=False), nn.BatchNorm2d(size)
    )


class ResNet(nn.Module):
    """Four stages of residual blocks."""

    def __init__(self, block, stages, n_classes=10, channels=3, width=16, stem="cifar"):
        super().__init__()
        imagenet = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            channels,
            width,
            7 if imagenet else 3,
            stride=2 if imagenet else 1,
            padding=3 if imagenet else 1,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        channels = width
        for stage, n_blocks in enumerate(stages):
            size = width * 2**stage
            blocks = []
            for number in range(n_blocks):
                stride = 2 if stage and not number else 1
                blocks.append(block(channels, size, stride))
                channels = size * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class MobileNet(nn.Module):
    """Depthwise k×k and pointwise 1×1 convolutions in turn; a stride of 2 doubles."""

    def __init__(
        self, n_classes=10, channels=3, width=8, strides=(1, 2), kernel_size=3, stem=2
    ):
        super().__init__()
        modules = [nn.Conv2d(channels, width, 3, stem, padding=1, bias=False)]
        shape = {"padding": kernel_size // 2, "bias": False}
        for index, stride in enumerate(strides):
            wide = width * 2 if stride > 1 or index == 0 else width
            modules += [
                nn.BatchNorm2d(width),
                nn.ReLU6(inplace=True),
                nn.Conv2d(width, width, kernel_size, stride, groups=width, **shape),
                nn.BatchNorm2d(width),
                nn.ReLU6(inplace=True),
                nn.Conv2d(width, wide, 1, bias=False),
            ]
            width = wide
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class ResNet20(nn.Module):
    """The ResNet for CIFAR of He et al. (2016), table 6, with shortcuts of option A.

    Takes images in [0, 1]; normalising them is its first step.
    """

    def __init__(self):
        super().__init__()
        for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            tensor = torch.tensor(value).reshape(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16)
        self.layer2 = self._stage(16, 32)
        self.layer3 = self._stage(32, 64)
        self.linear = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels, size):
        first = BlockOptionA(channels, size, stride=size // channels)
        return nn.Sequential(first, *(BlockOptionA(size, size, 1) for _ in range(2)))

    def forward(self, x):
        x = (x - self.mean) / self.std
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class BlockOptionA(nn.Module):
    """A basic block whose shortcut drops pixels and pads channels with zeros."""

    def __init__(self, channels, size, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, size, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(size)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(size)
        self.stride = stride
        self.margin = (size - channels) // 2

    def forward(self, x):
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        margins = (0, 0, 0, 0, self.margin, self.margin)
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], margins)
        return functional.relu(out + shortcut)


class SqueezeNet(nn.Module):
    """SqueezeNet v1.0 (Iandola et al., arXiv:1602.07360), with the names of Caffe.

    It takes images (n, 3, h, w) in [0, 255] as they are: Caffe's order of the channels
    and its means are its own.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        squeezed = (16, 16, 32, 32, 48, 48, 64, 64)
        channels = 96
        for number, size in enumerate(squeezed, 2):
            fire = nn.Module()
            fire.conv1x1_1 = nn.Conv2d(channels, size, 1)
            fire.conv1x1_2 = nn.Conv2d(size, 4 * size, 1)
            fire.conv3x3_2 = nn.Conv2d(size, 4 * size, 3, padding=1)
            self.add_module(f"fire{number}", fire)
            channels = 8 * size
        self.conv10 = nn.Conv2d(channels, 1000, 1)

    def forward(self, x):
        means = torch.tensor(CAFFE_MEANS, dtype=x.dtype, device=x.device)
        x = torch.relu(self.conv1(x.flip(1) - means.reshape(3, 1, 1)))
        for number in range(2, 10):
            if number in (2, 5, 9):
                x = functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
            fire = getattr(self, f"fire{number}")
            x = torch.relu(fire.conv1x1_1(x))
            wide = fire.conv1x1_2(x), fire.conv3x3_2(x)
            x = torch.relu(torch.cat(wide, 1))
        return torch.relu(self.conv10(x)).mean((2, 3))


class HED(nn.Module):
    """Edge detector on VGG-16 (Xie and Tu, arXiv:1504.06375): the logit of each pixel.

    It takes images (n, 3, h, w) in [0, 255] as they are.
    """

    def __init__(self):
        super().__init__()
        channels = 3
        for number, n_layers in enumerate(VGG_STAGES["vgg16"], 1):
            modules, size = [], 64 * min(2 ** (number - 1), 8)
            if number > 1:
                modules.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(n_layers):
                modules += [nn.Conv2d(channels, size, 3, padding=1), nn.ReLU()]
                channels = size
            setattr(self, f"block{number}", nn.Sequential(*modules))
            setattr(self, f"side{number}", nn.Conv2d(channels, 1, 1))
        self.fuse = nn.Conv2d(5, 1, 1)

    def forward(self, x):
        means = torch.tensor(CAFFE_MEANS, dtype=x.dtype, device=x.device)
        size, sides = x.shape[2:], []
        x = x.flip(1) - means.reshape(3, 1, 1)
        for number in range(1, 6):
            x = getattr(self, f"block{number}")(x)
            side = getattr(self, f"side{number}")(x)
            sides.append(functional.interpolate(side, size, mode="bilinear"))
        return self.fuse(torch.cat(sides, 1)).flatten(1)


def load_keras(network, path):
    """Load the weights of `HED` that Keras saved; returns the network."""
    import h5py

    with h5py.File(path) as file:
        for name, module in network.named_children():
            layers = [one for one in module.modules() if isinstance(one, nn.Conv2d)]
            for index, layer in enumerate(layers):
                group = file[name.replace("side", "dsn")]
                if name.startswith("block"):
                    group = group["layers"][f"conv2d_{index}" if index else "conv2d"]
                kernel, bias = group["vars/0"][()], group["vars/1"][()]
                layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1))
                layer.bias.data = torch.from_numpy(bias)
    return network


def load_npz(network, path):
    """Load weights that were saved by their names; returns the network."""
    with np.load(path, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays}
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} lacks {missing} and has {unexpected} too many.")
    return network


def alexnet(**options):
    """AlexNet for small images."""
    return AlexNet(**options)


def vgg11(**options):
    """VGG-11, with ``batch_norm=True`` the variant that normalises."""
    return VGG(VGG_STAGES["vgg11"], **options)


def vgg16(**options):
    """VGG-16."""
    return VGG(VGG_STAGES["vgg16"], **options)


def resnet18(**options):
    """ResNet-18."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet50(**options):
    """ResNet-50."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def mobilenet(**options):
    """Two of MobileNet's pairs of layers."""
    return MobileNet(**options)


def resnet20():
    """ResNet-20 for CIFAR-10."""
    return ResNet20()
