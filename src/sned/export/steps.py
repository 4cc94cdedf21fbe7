"""What recurrent layers return while a network is exported: PyTorch's converters ask for shapes again and again."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._decomp import decompositions
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode


@contextmanager
def shapes_of_one_step() -> Iterator[None]:
    """Let PyTorch learn from one step what recurrent layers return where it asks for shapes alone; it goes through all
    of them otherwise, again and again, which takes a minute for a few hundred."""
    held = vars(decompositions)
    names: tuple[str, ...] = ("one_layer_lstm", "one_layer_rnn")
    kept = {name: held[name] for name in names if name in held}

    def wrapped(all_steps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(all_steps)
        def one_layer(steps: Tensor, *args: Any, **kwargs: Any) -> Any:
            written_down = get_proxy_mode() is not None
            if written_down or not isinstance(steps, FakeTensor):
                return all_steps(steps, *args, **kwargs)
            output, ends = all_steps(steps[:1], *args, **kwargs)
            return output.repeat(len(steps), 1, 1), ends

        return one_layer

    held.update({name: wrapped(one) for name, one in kept.items()})
    try:
        yield
    finally:
        held.update(kept)
