import torch

from benchmarks.peers import macs
from sned.demo import make_network


def test_it_reads_images_of_any_batch_size() -> None:
    network = make_network()
    assert not network.training
    for n in (1, 3):
        assert network(torch.zeros(n, 1, 32, 32)).shape == (n, 10)


def test_what_its_docstring_says_of_its_size() -> None:
    """Closed form: side² × 9 × in × out a convolution, the projections, and the head."""
    network = make_network()
    convolutions = 32**2 * 9 * 1 * 32 + 16**2 * (9 * 32 * 64 + 3 * 9 * 64 * 64) + 8**2 * (9 * 64 * 128)
    convolutions += 8**2 * 3 * 9 * 128 * 128 + 4**2 * (9 * 128 * 192 + 3 * 9 * 192 * 192)
    projections = 16**2 * 32 * 64 + 8**2 * 64 * 128 + 4**2 * 128 * 192
    assert macs(network, torch.zeros(1, 1, 32, 32)) == convolutions + projections + 192 * 10
    assert 87e6 < convolutions + projections < 88e6
    assert sum(value.numel() for value in network.parameters()) == 1_902_570
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 16
