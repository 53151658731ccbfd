"""torchvision's ResNets for photographs of 224x224 pixels, with ImageNet's stem (7x7 of stride 2, max-pooling), as they are there."""

from kd.errors import ConfigError, nearest
from kd.models.tapped import Tapped

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class TorchvisionResNet(Tapped):
    """torchvision's network `name`, freshly initialised by torchvision. Features: 4, each stage's output (56, 28, 14, 7 wide for 224).

    The keys of its weights are torchvision's behind "module.". ConfigError for another name, and for images that are not of 3 channels.
    """

    def __init__(self, name, classes, channels=3):
        from torchvision import models  # slow to import, seldom needed

        if name not in RESNETS:
            raise ConfigError(f"of torchvision's networks there are {', '.join(RESNETS)} here{nearest(name, RESNETS)}")
        if channels != 3:
            raise ConfigError(f"torchvision's networks take images of 3 channels, not {channels}")
        super().__init__(models.get_model(name, num_classes=classes), ["layer1", "layer2", "layer3", "layer4"])
