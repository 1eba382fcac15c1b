"""A dilated ResNet in PyTorch, whose parameters are named as torchvision names them."""


def torch_resnet(torch, model):
    """The twin of a `ResNet` without its closing layer: (b, 3, h, w) → (b, c, h', w').

    Args:
        torch: the module.
        model: a `ResNet`, whose tables it is built from.
    """
    nn = torch.nn

    class Bottleneck(nn.Module):
        def __init__(self, before, width, stride, rate):
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, rate, rate, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.downsample = None
            if stride > 1 or before != 4 * width:
                conv = nn.Conv2d(before, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(y + (self.downsample(x) if self.downsample else x))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            before = 3
            for i, (kernel, channels, stride) in enumerate(model.stem, 1):
                width = round(channels * model.width_multiplier)
                conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False)
                setattr(self, f"conv{i}", conv)
                setattr(self, f"bn{i}", nn.BatchNorm2d(width))
                before = width
            groups = {}
            for row in model.blocks:
                width = round(row.channels * model.width_multiplier)
                block = Bottleneck(before, width, row.stride, row.dilation)
                groups.setdefault(row.name.split("_")[0], []).append(block)
                before = 4 * width
            for name, blocks in groups.items():
                setattr(self, name, nn.Sequential(*blocks))
            self.fc = nn.Linear(before, 10)
            self._groups = list(groups)

        def forward(self, x):
            for i in range(1, len(model.stem) + 1):
                x = getattr(self, f"conv{i}")(x)
                x = torch.relu(getattr(self, f"bn{i}")(x))
            x = nn.functional.max_pool2d(x, 3, 2, 1)
            for name in self._groups:
                x = getattr(self, name)(x)
            return x

    torch.manual_seed(0)
    twin = Twin()
    with torch.no_grad():
        for name, value in twin.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif "bn3.weight" in name:
                value.fill_(0.3)  # so that the sum over blocks does not explode
    return twin
