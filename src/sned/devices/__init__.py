"""What a plan would cost on a device, before it is built.

In: a `Graph` (shapes and what a plan changes about them; no weights) and a `Device`. Out: a `Cost` that tells the
latency, energy, memory, MACs, parameters and file size of a million plans a minute, and the `Budget` that they have to
meet. Ops are timed on the device where that can be done; else latencies come from a calibration of it, or are estimated
from its data sheet, and say so. No framework is needed.
"""

from sned.devices.budget import Budget
from sned.devices.cost import Cost, CostModel, Costs, FleetCost, LayerCost
from sned.devices.model import check_runs, cost_for, cost_model, limits_for
from sned.devices.profile import Device, find_device, find_devices, list_devices, list_sets, read_device

__all__ = [
    "Budget",
    "Cost",
    "CostModel",
    "Costs",
    "Device",
    "FleetCost",
    "LayerCost",
    "check_runs",
    "cost_for",
    "cost_model",
    "find_device",
    "find_devices",
    "limits_for",
    "list_devices",
    "list_sets",
    "read_device",
]
