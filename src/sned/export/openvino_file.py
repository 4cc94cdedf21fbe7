"""OpenVINO files: the same network in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_DEFAULTS = {"auto_broadcast": "numpy", "auto_pad": "explicit"}
"""Settings that an operation has where its description says nothing else."""


def compact(path: Path) -> None:
    """Rewrite a description of a graph so that it says each thing once.

    Equal numbers become one constant; what made the file, names inside the graph, line breaks, and shapes between
    layers, which OpenVINO works out anew when it reads a file, are left out. Of a small network in 8 bits this text is
    larger than the weights: every quantiser brings four constants.

    Args:
        path: of the `.xml`; the weights lie beside it and stay as they are.
    """
    net = ElementTree.parse(path).getroot()
    layers, edges = _only(net, "layers"), _only(net, "edges")
    _share_numbers(layers, edges, path.with_suffix(".bin").read_bytes())
    ends = {layer.get("id") for layer in layers if layer.get("type") == "Result"}
    answers = {
        (edge.get("from-layer"), edge.get("from-port")) for edge in edges if edge.get("to-layer") in ends
    }
    for layer in layers:
        _shorten(layer, answers)
    for told in net.findall("rt_info"):
        net.remove(told)
    for element in net.iter():
        element.text = element.text.strip() if element.text else None
        element.tail = None
    path.write_bytes(ElementTree.tostring(net).replace(b" />", b"/>"))


def _only(parent: Element, tag: str) -> Element:
    (found,) = parent.findall(tag)
    return found


def _share_numbers(layers: Element, edges: Element, weights: bytes) -> None:
    """Single numbers and integers alone: a bias or a scale of two layers would no longer melt into either."""
    first: dict[tuple[str | None, str | None, bytes], str] = {}
    instead: dict[str, str] = {}
    for layer in layers.findall("layer[@type='Const']"):
        told, number = _only(layer, "data"), layer.attrib["id"]
        if told.get("shape") and told.get("element_type") not in ("i32", "i64"):
            continue
        start, size = int(told.attrib["offset"]), int(told.attrib["size"])
        value = told.get("element_type"), told.get("shape"), weights[start : start + size]
        instead[number] = first.setdefault(value, number)
        if instead[number] != number:
            layers.remove(layer)
    for edge in edges:
        source = edge.attrib["from-layer"]
        edge.set("from-layer", instead.get(source, source))


def _shorten(layer: Element, answers: set[tuple[str | None, str | None]]) -> None:
    """Leave out what follows from other layers, or is so by default; names that programs ask for stay: those of inputs
    and outputs."""
    if layer.get("type") not in ("Parameter", "Result"):
        layer.set("name", "")
    for told in layer.findall("data"):
        for setting, value in dict(told.attrib).items():
            told.set(setting, value.replace(", ", ","))
            if _DEFAULTS.get(setting) == value:
                del told.attrib[setting]
        if not told.attrib:
            layer.remove(told)
    for port in layer.iterfind("*/port"):
        for size in port.findall("dim"):
            port.remove(size)
    for port in layer.iterfind("input/port"):
        port.attrib.pop("precision", None)
    for port in layer.iterfind("output/port"):
        if layer.get("type") != "Parameter" and (layer.get("id"), port.get("id")) not in answers:
            port.attrib.pop("names", None)
