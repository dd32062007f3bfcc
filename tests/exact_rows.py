"""The exact solution that the refit of masked rows is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def solve_rows(weight: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """Solve each row's normal equations on its remaining columns: exact, a factorisation per row.

    Args:
        weight: [out, in], before pruning.
        mask: boolean [out, in]; true remains.
        matrix: [in, in], float64, the `damped` second moment of the inputs.

    Returns:
        [out, in], zero where the mask is false.
    """
    target = weight.detach().double() @ matrix
    solved = torch.zeros_like(weight)
    for row, remains in enumerate(mask):
        columns = remains.nonzero().squeeze(1)
        if len(columns):
            factor = torch.linalg.cholesky(matrix[columns][:, columns])
            found = torch.cholesky_solve(target[row, columns].unsqueeze(1), factor)
            solved[row, columns] = found.squeeze(1).to(weight.dtype)
    return solved
