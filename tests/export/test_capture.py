import pytest
import torch
from torch import Tensor, nn

from sned.export.capture import Captured, Subject


class Of(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.rnn(x)[0].mean(1)
        return y, y.abs()


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Subject(Of()).capture(torch.randn(1, 3, 4), dynamic_batch=False)


@pytest.mark.parametrize(
    ("told", "origin"),
    [
        ("Unsupported fx node gru, kind gru.input", "'aten.gru.input' in module 'rnn'"),
        ("Operator: <EdgeOpOverload: aten.abs.default>: in a pass over the mean", "'aten.abs.default'"),
        ("No conversion rule found for operations: aten::abs", "'aten.abs.default'"),
        ("PyTorch convert function for op 'mean' not implemented", "'aten.mean.dim'"),
        ("Tensor name is not a number: mean:0", ""),
        ("absolute nonsense", ""),
    ],
)
def test_an_operation_is_blamed_where_it_is_named(captured: Captured, told: str, origin: str) -> None:
    assert captured.origin(RuntimeError(told)) == origin


def test_outputs_bear_no_name_twice_and_none_of_an_input() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"x": x + y, "x.2": x - y, "x/2": x * y, "z": x}

    captured = Subject(Named()).capture((torch.ones(2), torch.ones(2)), dynamic_batch=False)
    assert captured.outputs == ("x_2", "x_2_2", "x_2_3", "z")


class Answer:
    """Neither a container nor a dataclass."""

    def __init__(self, logits: Tensor, hidden: list[Tensor]) -> None:
        self.logits, self.hidden = logits, hidden


def test_answers_in_an_object_of_a_class_of_its_own_are_written() -> None:
    class Answering(nn.Module):
        def forward(self, x: Tensor) -> Answer:
            return Answer(x * 2, [x + 1])

    captured, x = Subject(Answering()).capture(torch.ones(2), dynamic_batch=False), torch.arange(2.0)
    assert captured.outputs == ("logits", "hidden_0")
    assert [output.tolist() for output in captured.program.module()(x)] == [[0, 2], [1, 2]]


def test_a_tensor_that_is_an_input_or_comes_twice_leaves_as_a_copy() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x * 2
            return x, y, y

    x = torch.ones(2)
    outputs = Subject(Same()).run(x)
    assert len({id(tensor) for tensor in (x, *outputs)}) == 4
    assert [output.tolist() for output in outputs] == [[1, 1], [2, 2], [2, 2]]


def test_a_model_whose_weight_comes_from_a_pass_is_copied() -> None:
    layer = nn.utils.weight_norm(nn.Linear(3, 4))
    layer(torch.randn(2, 3)).sum().backward()
    model, x = nn.Sequential(layer), torch.randn(2, 3)
    expected = model(x)
    subject = Subject(model)
    torch.testing.assert_close(subject.run(x)[0], expected)
    assert layer.weight.grad_fn is not None
    captured = subject.capture(x, dynamic_batch=False)
    torch.testing.assert_close(captured.program.module()(x)[0], expected)
