"""Stage by stage: which units go together, a plan with rules of your own, surgery, and what was removed.

    python examples/stages.py

Nothing is computed before `sned.apply`: a trace takes shapes alone, and the network is not touched.
"""

import torch
from torch import nn

import sned


class Block(nn.Module):
    """Attention and a feed-forward part, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, t, width]` to the same."""
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, -1))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), Block(64, heads=4), Block(64, heads=4), nn.Linear(64, 3)).eval()
x = torch.randn(2, 10, 16)

graph = sned.trace(model, x)
for group in graph.groups:
    print(f"{group.name}: {group.size} units, {'exact' if group.exact else 'not exact'}")

# Half of the feed-forward of the first block, the second one whole, and counts that are multiples of 8.
plan = sned.plan(graph, rules={"sparsity": {"1.up*": 0.5}, "multiple_of": {"*": 8}})
small = sned.apply(model, plan)
print({name: tuple(tensor.shape) for name, tensor in small.named_parameters() if name.startswith("1.up")})

# A quarter of every group, by magnitude: whole heads go, and `heads` follows; the forward pass is yours as it was.
smaller = sned.apply(small, sned.plan(sned.trace(small, x), sparsity=0.25))
print([block.heads for block in smaller if isinstance(block, Block)], smaller(x).shape)
