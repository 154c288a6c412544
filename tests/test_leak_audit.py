"""The audit finds what it is said to find."""

import pytest
import torch

from examples.leak_audit import PATCH, SIZE, SUBJECTS, main
from ssl_blocks.testing import check_leaks


@pytest.mark.parametrize(
    ("name", "leaks"),
    [
        ("causal, as it should be", False),
        ("mask inverted for timm", True),
        ("targets not shifted", True),
        ("lightly: AIM", True),
        ("lightly: MAE", False),
        ("lightly: SimMIM", False),
    ],
)
def test_what_leaks_is_found_and_what_does_not_passes(name, leaks):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, SIZE, SIZE)
    report = check_leaks(SUBJECTS[name](), images, patch_size=PATCH, draws=8, generator=generator)
    assert bool(report.leaks) == leaks
    assert bool(report.passed) != leaks


def test_the_audit_prints_both_verdicts(capsys):
    assert main(["--steps", "1", "--only", "targets not shifted"]) == 0
    printed = capsys.readouterr().out
    assert "check_leaks: Causal: by gradient: the prediction of step 0 in image 0 depends on position 0" in printed
    assert "noise_floor: " in printed
    assert "lightly 1." in printed
