"""Encoders of every kind and shape that can be saved."""

import timm
import torch
from timm.models import Eva
from torch import nn
from torchvision.models import VisionTransformer

import ssl_blocks as sb
from ssl_blocks import encoders
from ssl_blocks.encoders import TimmRegions, TokenRegions, TorchEncoder, wrap
from tests.encoders.families import FAMILIES, images_for, shaken

SIZE = {"depth": 2, "embed_dim": 16, "num_heads": 2}
RECTANGLE = {"image_size": (8, 12), "patch_size": (4, 2), **SIZE}


class Own(nn.Module):
    """A user's model, whose parts have names of their own."""

    def __init__(self, layers, stem, positions, prefix):
        super().__init__()
        self.trunk = nn.ModuleDict({"patchify": stem, "body": layers})
        for name, tensor in (("table", positions), ("cls", prefix)):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            elif tensor is not None:
                self.register_buffer(name, tensor, persistent=False)
        self.unused = nn.Linear(2, 2)


def torch_encoder(*, positions="learned", prefix=0, prefix_rows=0, own=False, norm=None, flat=False, **layer):
    def build():
        grid, rows = sb.Grid(2, 6), 12 + prefix_rows
        table = None if positions == "none" else torch.randn(*(() if flat else (1,)), rows, 16)
        if positions == "learned":
            table = nn.Parameter(table)
        token = nn.Parameter(torch.randn(1, prefix, 16)) if prefix else None
        options = {"batch_first": True, "norm_first": True, **layer}
        layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, **options), 2, norm=norm and norm(), enable_nested_tensor=False
        )
        stem = nn.Conv2d(3, 16, (4, 2), (4, 2), bias=not own, padding="valid" if own else 0)
        module = Own(layers, stem, table, token) if own else None
        return TorchEncoder(layers, stem=stem, grid=grid, positions=table, prefix=token, module=module)

    return build


def torchvision_vit(*, head=True, channels=3, **options):
    def build():
        size = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}
        vit = VisionTransformer(image_size=12, patch_size=4, num_classes=5, **size, **options)
        if not head:
            vit.heads = nn.Identity()
        if channels != 3:
            vit.conv_proj = nn.Conv2d(channels, 16, 4, 4)
        return wrap(vit)

    return build


def transformers_vit(name="ViT", arguments=None, **options):
    def build():
        import transformers

        size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = getattr(transformers, f"{name}Config")(**size, image_size=[8, 12], patch_size=4, **options)
        return wrap(getattr(transformers, f"{name}Model")(config, **(arguments or {})))

    return build


def regions(name, norm=None, **options):
    def build():
        model = timm.create_model(name, num_classes=0, **options)
        return TimmRegions(model, norm=norm and norm(model))

    return build


def swin():
    size = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}
    return encoders.timm_regions(image_size=(16, 24), **size)


def rotary_eva():
    options = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "use_fc_norm": False, "num_classes": 0}
    model = timm.create_model("eva02_tiny_patch14_224", img_size=(8, 12), patch_size=4, **SIZE, **options)
    assert isinstance(model, Eva)
    return wrap(model)


TORCH = {
    "torch, own module, prefix and fixed positions": torch_encoder(positions="fixed", prefix=2, own=True),
    "torch, rows for the prefix": torch_encoder(prefix=2, prefix_rows=2, norm=lambda: nn.LayerNorm(16)),
    "torch, flat table": torch_encoder(flat=True, own=True, norm=lambda: nn.LayerNorm(16, bias=False, eps=1e-3)),
    "torch, flat fixed table": torch_encoder(flat=True, positions="fixed", norm_first=False),
    "torch, no positions": torch_encoder(positions="none", batch_first=False, prefix=1, own=True),
    "torch, gelu without biases": torch_encoder(activation="gelu", bias=False, dropout=0.3, layer_norm_eps=1e-3),
    "torch, activations as modules": torch_encoder(activation=nn.GELU()),
}
TORCHVISION = {
    "torchvision, no head": torchvision_vit(head=False, dropout=0.1, attention_dropout=0.2),
    "torchvision, one channel": torchvision_vit(channels=1),
    "torchvision, representation": torchvision_vit(
        representation_size=7, norm_layer=lambda dim: nn.LayerNorm(dim, eps=0.1)
    ),
}
TRANSFORMERS = {
    "ViT, rectangle, no pooling": transformers_vit(arguments={"add_pooling_layer": False}, intermediate_size=24),
    "ViT, mask token": transformers_vit(arguments={"use_mask_token": True}, num_channels=1, layer_norm_eps=1e-3),
    "DINOv2, rectangle": transformers_vit("Dinov2", mlp_ratio=2),
    "DINOv2 with registers, rectangle": transformers_vit("Dinov2WithRegisters", mlp_ratio=2, num_register_tokens=3),
    "DINOv3, rectangle": transformers_vit("DINOv3ViT", intermediate_size=24),
}
TIMM = {
    f"timm, {positions}{', class token' * token}": lambda positions=positions, token=token: encoders.timm_vit(
        positions=positions, class_token=token, **RECTANGLE
    )
    for positions, token in (("sincos", False), ("learned", True), ("none", False))
}
TIMM |= {
    "timm, registers": lambda: encoders.timm_vit(reg_tokens=2, class_token=True, positions="learned", **RECTANGLE),
    "timm rope, rectangle": lambda: encoders.timm_eva(**RECTANGLE),
    "timm rope alone, rectangle": rotary_eva,
}
PUZZLE = {
    "PostNormTransformer": lambda: sb.encoders.PostNormTransformer(grid=(2, 3), patch=(4, 2), depth=2, num_heads=4)
}
REGIONS = {
    "Swin": swin,
    "ResNet": regions("resnet10t"),
    "ConvNeXt": regions("test_convnext"),
    "Swin, its norm given": lambda: TimmRegions((m := swin().module), norm=m.norm),
    "ConvNeXt, no norm": regions("test_convnext", norm=lambda model: nn.Identity()),
    "ViT's map": regions("vit_tiny_patch16_224", img_size=(16, 24), patch_size=4, **SIZE),
}
TOKENS = {
    "tokens of timm, class token": lambda: TokenRegions(
        encoders.timm_vit(class_token=True, positions="learned", **RECTANGLE)
    ),
    "tokens of timm, mean": lambda: TokenRegions(encoders.timm_vit(class_token=True, **RECTANGLE), class_token=False),
    "tokens of torch, class token": lambda: TokenRegions(torch_encoder(prefix=2, own=True)()),
    "tokens of torch, mean": lambda: TokenRegions(torch_encoder()()),
    "tokens of torchvision, class token": lambda: TokenRegions(torchvision_vit()()),
    "tokens of transformers, class token": lambda: TokenRegions(transformers_vit()()),
    "tokens of a puzzle": lambda: TokenRegions(PUZZLE["PostNormTransformer"]()),
}
ALL = {**FAMILIES, **TORCH, **TORCHVISION, **TRANSFORMERS, **TIMM, **PUZZLE, **REGIONS, **TOKENS}


def build(name):
    """In evaluation mode, with weights that hide nothing."""
    torch.manual_seed(0)
    encoder = ALL[name]()
    shaken(encoder.module)
    for part in encoder.module.modules():  # running statistics, too
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.add_(0.1)
    encoder.module.eval()
    return encoder


def inputs_for(encoder):
    inner = encoder.encoder if isinstance(encoder, TokenRegions) else encoder
    if hasattr(inner, "grid"):
        return images_for(inner)
    size = (16, 24) if hasattr(encoder.module, "patch_embed") else (64, 96)  # convolutions take what is large enough
    return torch.randn(2, encoder.channels, *size, generator=torch.Generator().manual_seed(1))
