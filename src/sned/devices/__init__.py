"""What a plan would cost on a device, before it is built.

In: a `Graph` (shapes and what a plan changes about them; no weights) and a `Device`. Out: a `CostModel` that
    tells the
latency, MACs, parameters and file size of a hundred thousand plans a minute, and the `Budget` that they have
to meet. Ops are timed on the device where that can be done. No framework is needed.
"""

from sned.devices.budget import Budget
from sned.devices.cost import CostModel, Costs, LayerCost, MeasuredCost, cost_model
from sned.devices.profile import Device, find_device, list_devices, read_device

__all__ = [
    "Budget",
    "CostModel",
    "Costs",
    "Device",
    "LayerCost",
    "MeasuredCost",
    "cost_model",
    "find_device",
    "list_devices",
    "read_device",
]
