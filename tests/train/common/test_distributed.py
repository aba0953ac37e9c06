import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from train.common.distributed import BatchRows, SynchronizedBatchNorm, SynchronizedDropout, synchronize_layers


def one_process(num_rows: int) -> BatchRows:
    rows = BatchRows(1, 0)
    rows.resize(num_rows)
    return rows


class TestBatchRows:
    @pytest.mark.parametrize("total", [0, 1, 2, 7, 256])
    @pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
    def test_processes_share_the_batch(self, total, num_processes):
        owned = []
        for index in range(num_processes):
            rows = BatchRows(num_processes, index)
            rows.resize(total)
            owned.append(list(range(total))[rows.slice][: rows.count])
            assert len(range(max(total, 1))[rows.slice]) == max(rows.count, 1)
        assert [row for rows in owned for row in rows] == list(range(total))
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.processor
class TestBatchNorm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_process_equals_torch(self, dtype):
        torch.manual_seed(0)
        expected = nn.BatchNorm2d(6).to(dtype)
        with torch.no_grad():
            expected.weight.uniform_(0.5, 2)
            expected.bias.normal_()
        layer = SynchronizedBatchNorm(copy.deepcopy(expected), one_process(5))
        assert list(layer.state_dict()) == list(expected.state_dict())
        for training in (True, True, False):
            layer.train(training)
            expected.train(training)
            x = (torch.randn(5, 6, 4, 3, dtype=dtype) * 3 + 10).requires_grad_()
            y = x.detach().clone().requires_grad_()
            weights = torch.randn(5, 6, 4, 3, dtype=dtype)
            (expected(x) * weights).sum().backward()
            (layer(y) * weights).sum().backward()
            torch.testing.assert_close(layer(y), expected(x), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(y.grad, x.grad, rtol=1e-4, atol=1e-5)
            for name, value in expected.named_parameters():
                torch.testing.assert_close(dict(layer.named_parameters())[name].grad, value.grad, rtol=1e-4, atol=1e-4)
            for name, value in expected.state_dict().items():
                torch.testing.assert_close(layer.state_dict()[name], value)

    def test_gradient_by_finite_differences(self):
        layer = SynchronizedBatchNorm(nn.BatchNorm1d(3).double(), one_process(4))
        assert torch.autograd.gradcheck(layer, torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True))


class TestDropout:
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_one_process_equals_torch(self, memory_format):
        x = torch.randn(5, 6, 4, 3).contiguous(memory_format=memory_format)
        torch.manual_seed(3)
        expected = nn.Dropout(0.3)(x)
        torch.manual_seed(3)
        torch.testing.assert_close(SynchronizedDropout(0.3, one_process(5))(x), expected)

    def test_processes_cut_one_mask(self):
        x = torch.ones(7, 11)
        torch.manual_seed(3)
        expected = nn.Dropout(0.5)(x)
        parts = []
        for index in range(3):
            rows = BatchRows(3, index)
            rows.resize(7)
            torch.manual_seed(3)
            parts.append(SynchronizedDropout(0.5, rows)(x[rows.slice]))
        assert torch.equal(torch.cat(parts), expected)

    def test_evaluation_drops_nothing(self):
        x = torch.ones(3, 4)
        assert torch.equal(SynchronizedDropout(0.5, BatchRows(2, 0)).eval()(x), x)


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 2, 1)
    ).double()


def train_step(network: nn.Module, x: torch.Tensor, rows: BatchRows) -> list[torch.Tensor]:
    """One forward and backward pass of a loss that couples all rows; returns gradients, buffers and the output."""
    torch.manual_seed(1)
    rows.resize(len(x))
    output = rows.gather(network(x[rows.slice]).mean((2, 3)))
    (output.square().mean() + output.mean(0).exp().sum()).backward()
    return [parameter.grad for parameter in network.parameters()], dict(network.named_buffers()), output.detach()


def run_process(index: int, num_processes: int, address: str, batch_sizes: list[int]) -> None:
    dist.init_process_group("gloo", init_method=address, world_size=num_processes, rank=index)
    for batch_size in batch_sizes:
        x = torch.randn(batch_size, 1, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        expected_gradients, expected_buffers, expected_output = train_step(make_network(), x, BatchRows(1, 0))
        rows = BatchRows(num_processes, index)
        network = make_network()
        synchronize_layers(network, rows)
        gradients, buffers, output = train_step(network, x, rows)
        for gradient in gradients:
            dist.all_reduce(gradient)
        torch.testing.assert_close(output, expected_output)
        torch.testing.assert_close(gradients, expected_gradients)
        torch.testing.assert_close(buffers, expected_buffers)
    dist.destroy_process_group()


@pytest.mark.processor
def test_three_processes_equal_one(tmp_path):
    """Also with a batch that leaves a process without rows."""
    mp.spawn(run_process, args=(3, f"file://{tmp_path}/rendezvous", [9, 7, 2]), nprocs=3)
