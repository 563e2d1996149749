"""In which precision torsos are computed. Parameters, heads, losses and curvature are float32 throughout."""

import torch

from acktr.agents.settings import Settings
from acktr.errors import UserError


def choose_precision(settings: Settings, device: torch.device, *, convolutional: bool) -> tuple[torch.dtype, str]:
    """The precision that the settings name or that suits network and processor, and the reason in one line.

    "auto" takes bfloat16 where it is known to pay: convolutions on CPUs that multiply it natively (AVX-512 BF16, AMX).
    An MLP on vectors would lose more to conversions than it gains.

    Raises:
        UserError: bfloat16 on a device without it.
    """
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if settings.precision == "auto":
        if convolutional and native and torch.get_default_dtype() == torch.float32:
            return torch.bfloat16, "precision: bfloat16 in the torso, which this CPU multiplies natively; else float32"
        return torch.float32, "precision: float32"
    if settings.precision == "float32":
        return torch.float32, "precision: float32, as set"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("this GPU has no bfloat16: train with --precision float32, or go on with this run elsewhere")
    return torch.bfloat16, "precision: bfloat16 in the torso, as set; else float32"
