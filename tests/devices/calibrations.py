"""A made-up calibration: times that follow a rule, so that what is learnt from them can be checked."""

from __future__ import annotations

from typing import Any

from sned.devices.calibration import OPS, Calibration, Sample, Statics, parse_calibration
from sned.devices.design import Shape, design
from sned.devices.figures import figures
from sned.devices.profile import Device
from sned.devices.roofline import Roofline


def law(roofline: Roofline, shape: Shape) -> float:
    """Three times the roofline, and a little more for wide ops: microseconds."""
    own = roofline.launch_us(shape.family, shape.columns, shape.columns[0] * 0 if shape.columns else None)  # type: ignore[arg-type]
    widest = max(shape.widths, default=1.0)
    return float(own[0]) * 3 * widest**0.05


def made_up(device: Device, block: int = 1, count: int = 400, **changes: Any) -> Calibration:
    """A calibration of `device` by that law."""
    roofline = Roofline(figures(device, block=block), block)
    samples = [
        Sample(
            op=shape.family.recipe,
            statics=Statics.model_validate(dict(shape.family.statics)),
            widths=dict(zip(OPS[shape.family.recipe][0], map(int, shape.widths), strict=True)),
            us=law(roofline, shape),
        )
        for shape in design(block, count)
        if shape.widths
    ]
    held = {
        "format": "sned-calibration", "version": 3, "device": device.name, "runtime": "onnxruntime",
        "runtime_version": "1.0.0", "block": block, "call_us": 5.0,
        "samples": [sample.model_dump(exclude_none=True) for sample in samples],
    }  # fmt: skip
    return parse_calibration({**held, **changes})
