"""A sum of objectives over blobs, in as many processes as torchrun started; run by tests/two_processes.py."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import ssl_blocks as sb
from tests.recipes import build, images

SIZE = 6


def blobs_and_mae() -> sb.WeightedSum:
    """One loss counts unequally many tokens in every image, the other equally many."""
    blobs = build(sb.BlobPartitioner(counts=(3,)), depth=2)
    decoder = sb.MaskTokenDecoder(grid=blobs.encoder.grid, dim=16, depth=1, num_heads=2)
    mae = sb.mae(encoder=blobs.encoder, tokenizer=blobs.tokenizer, target=blobs.target, decoder=decoder)
    return sb.WeightedSum({"blobs": blobs, "mae": mae}, weights={"blobs": 1.0, "mae": 0.5})


def draw_of(draw: sb.Serialization, rows: slice) -> sb.Serialization:
    return sb.Serialization(draw.order[rows], draw.step[rows], draw.step_sizes)


def gradients(rows: slice) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss and gradients of some images of the batch, and how many tokens of blobs count in them."""
    both, batch = blobs_and_mae(), images(SIZE)
    drawn = both.draw(batch, generator=torch.Generator().manual_seed(0))
    out = both(batch[rows], {name: draw_of(draw, rows) for name, draw in drawn.items()})
    out.loss.backward()
    counted = (drawn["blobs"].step[rows] > 0).sum()
    return out.loss.detach(), {k: p.grad for k, p in both.named_parameters() if p.grad is not None}, counted


def main(folder: Path) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    share = SIZE // world
    loss, found, counted = gradients(slice(rank * share, (rank + 1) * share))
    for gradient in found.values():  # as DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= world
    torch.save((loss, found, counted), folder / f"{rank}.pt")
