"""Muon for the matrices of the layers, AdamW for everything else.

Muon (momentum orthogonalised by a Newton-Schulz iteration; K. Jordan and others, 2024) with the
update scaled to AdamW's usual size, 0.2 sqrt(max(rows, columns)) (Moonlight, 2025), so that both
share one learning rate. The update is computed for square or 1:3 pieces in one batch: the query,
key and value rows and the two halves of the gated projection are matrices of their own.
"""

from __future__ import annotations

import torch

from model import GLM

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalise(batch: torch.Tensor) -> torch.Tensor:
    """Approximate U V^T of each matrix; batch [n, rows, columns], rows <= columns."""
    a, b, c = COEFFICIENTS
    x = batch.bfloat16() if batch.is_cuda else batch.clone()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = torch.bmm(x, x.transpose(1, 2))
        gram2 = torch.bmm(gram, gram)
        x = a * x + torch.bmm(b * gram + c * gram2, x)
    return x.float()


class Muon:
    """Muon for the layers' linear weights of a GLM."""

    def __init__(self, net: GLM, lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.config = net.config
        self.weights = [
            linear.weight
            for layer in net.layers
            for linear in (layer.qkv, layer.dense, layer.up, layer.down)
        ]
        self.buffers = [torch.zeros_like(w) for w in self.weights]

    def pieces(self, matrix: torch.Tensor) -> torch.Tensor:
        """Views of a weight-shaped tensor as [n, rows, columns] with rows <= columns."""
        c = self.config
        rows, columns = matrix.shape
        if rows == 3 * c.hidden and columns == c.hidden:
            by_head = matrix.view(c.heads, 3, c.head_dim, c.hidden).transpose(0, 1)
            return by_head.reshape(3, c.hidden, c.hidden)
        if rows == 2 * c.inner:
            return matrix.view(2, c.inner, c.hidden).transpose(1, 2)
        return matrix[None]

    def whole(self, pieces: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The inverse of pieces()."""
        c = self.config
        if len(pieces) == 3:
            by_head = pieces.view(3, c.heads, c.head_dim, c.hidden).transpose(0, 1)
            return by_head.reshape(shape)
        if len(pieces) == 2:
            return pieces.transpose(1, 2).reshape(shape)
        return pieces[0]

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients."""
        parts = []
        for weight, buffer in zip(self.weights, self.buffers):
            buffer.lerp_(weight.grad, 1 - self.momentum)
            parts.append(self.pieces(weight.grad.lerp(buffer, self.momentum)))
        groups: dict[torch.Size, list[int]] = {}
        for index, part in enumerate(parts):
            groups.setdefault(part.shape[1:], []).append(index)
        for shape, members in groups.items():
            found = orthogonalise(torch.cat([parts[i] for i in members]))
            found *= 0.2 * max(shape) ** 0.5
            for i, update in zip(members, found.split([len(parts[i]) for i in members])):
                weight = self.weights[i]
                weight.mul_(1 - self.lr * self.decay)
                weight.sub_(self.whole(update, weight.shape), alpha=self.lr)

    def state_dict(self) -> list[torch.Tensor]:
        return self.buffers

    def load_state_dict(self, state: list[torch.Tensor]) -> None:
        for buffer, saved in zip(self.buffers, state):
            buffer.copy_(saved)
