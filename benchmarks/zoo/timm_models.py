"""The network with the fewest parameters of each of the 98 model modules of timm 1.0.31."""

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.zoo.network import Network
from sned.cli.zoo import from_zoo, import_torchvision

_NAMES = """
beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
deepseek_vit_412m deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0
vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m
ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_base
mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small
test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050
repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p
xcit_nano_12_p8_224
"""

SMALLEST = tuple(_NAMES.split())

_SIDE = 128
"""Pixels a side, where the network takes any."""

_SIDES = {"halonet_h1": 256, "deepseek_vit_412m": 126}
"""What a network that says that it takes any size needs nevertheless."""


def smallest() -> list[Network]:
    """The 98 networks."""
    return [Network("timm", name, partial(_build, name), _images(name)) for name in SMALLEST]


def _build(name: str) -> nn.Module:
    """The network as timm has it; one without a classifier gets one, or its width would be its output."""
    model = from_zoo("timm", name)
    if model.num_classes:
        return model
    import_torchvision()
    made: nn.Module = importlib.import_module("timm").create_model(name, num_classes=1000)
    return made


def _images(name: str) -> Callable[[int], torch.Tensor]:
    def example(batch: int) -> torch.Tensor:
        import_torchvision()
        card = importlib.import_module("timm").get_pretrained_cfg(name)
        side = (
            card.input_size[-1]
            if card.fixed_input_size
            else min(_SIDES.get(name, _SIDE), card.input_size[-1])
        )
        return torch.randn(batch, 3, side, side)

    return example
