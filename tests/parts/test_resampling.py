"""Position tables follow the grid."""

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

import ssl_blocks as sb
from ssl_blocks.parts.position import resample_positions


def test_the_same_grid_keeps_the_table() -> None:
    table = torch.randn(1, 17, 8)
    assert resample_positions(table, old=sb.Grid(4, 4), new=sb.Grid(4, 4), num_prefix=1) is table


def test_prefix_rows_stay_and_a_plane_stays_a_plane() -> None:
    old, new = sb.Grid(6, 4), sb.Grid(12, 8)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 4), indexing="ij")
    table = torch.cat([torch.full((1, 2, 2), 7.0), torch.stack([rows, columns], -1).reshape(1, 24, 2)], dim=1)
    found = resample_positions(table, old=old, new=new, num_prefix=2)
    assert torch.equal(found[:, :2], table[:, :2])
    plane = found[0, 2:].reshape(12, 8, 2)
    inner = plane[3:-3, 3:-3]
    torch.testing.assert_close(inner[..., 0], inner[:, :1, 0].expand(-1, 2), rtol=0, atol=1e-3)
    steps = inner[1:, :, 0] - inner[:-1, :, 0]
    # torch's kernel (a = -0.75) bends a plane a little between the rows it has
    torch.testing.assert_close(steps, torch.full_like(steps, 2 / 5 / 2), rtol=0, atol=4e-2)


@pytest.mark.parametrize("new", [sb.Grid(7, 9), sb.Grid(2, 3)])
def test_tables_are_resampled_as_mae_and_deit_do_and_as_timm_does_by_request(new: sb.Grid) -> None:
    table, old = torch.randn(1, 21, 8), sb.Grid(4, 5)
    image = table[:, 1:].reshape(1, 4, 5, 8).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(image, size=new.sizes, mode="bicubic", align_corners=False)
    found = resample_positions(table, old=old, new=new, num_prefix=1)
    assert torch.equal(found[:, 1:], plain.permute(0, 2, 3, 1).flatten(1, 2))
    smooth = resample_positions(table, old=old, new=new, num_prefix=1, antialias=True)
    timms = resample_abs_pos_embed(table, list(new.sizes), old_size=[4, 5], num_prefix_tokens=1)
    torch.testing.assert_close(smooth, timms)
    assert not torch.allclose(smooth, found, atol=1e-2)


def test_a_table_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"table of 17 rows must have num_prefix \+ N = 0 \+ 16 of grid 4x4"):
        resample_positions(torch.zeros(1, 17, 8), old=sb.Grid(4, 4), new=sb.Grid(8, 8))
