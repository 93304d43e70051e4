"""What a student is taught with. Each gives the mean over a batch as a float[]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher_T || student_T) of logits [..., classes] (Hinton et al. 2015, arXiv:1503.02531)."""
    ours = F.log_softmax(student.float().flatten(0, -2) / temperature, dim=-1)
    theirs = F.log_softmax(teacher.float().flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def attention_map(features: Tensor) -> Tensor:
    """The mean square over channels of [batch, channels, ...] or [batch, tokens, channels], as [batch, ...]."""
    return features.float().square().mean(dim=1 if features.dim() != 3 else 2)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """The distance of normalized attention maps (Zagoruyko & Komodakis 2017, arXiv:1612.03928).

    This is the paper's formula, whose weight is about 1 a pair beside soft labels. The authors' program takes the mean
    of squares over the map instead, which is smaller by its size and wants a weight of some hundreds.

    Maps of another size are resized to the student's: images by averaging or bilinear, sequences by linear.
    """
    ours, theirs = attention_map(student), attention_map(teacher)
    theirs = resized(theirs, ours)
    distance = F.normalize(ours.flatten(1), dim=1) - F.normalize(theirs.flatten(1), dim=1)
    return _norm(distance).mean()


def _norm(rows: Tensor) -> Tensor:
    """The length of each row, with a gradient of zero, and not NaN, where a row is zero."""
    return (rows.square().sum(dim=1) + 1e-12).sqrt()


def resized(values: Tensor, like: Tensor) -> Tensor:
    """[batch, ...] with the spatial sizes of another."""
    sizes = like.shape[1:]
    if values.shape[1:] == sizes:
        return values
    if all(have >= want for have, want in zip(values.shape[1:], sizes, strict=True)) and len(sizes) == 2:
        return F.adaptive_avg_pool2d(values.unsqueeze(1), sizes).squeeze(1)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sizes)]
    return F.interpolate(values.unsqueeze(1), size=tuple(sizes), mode=mode, align_corners=False).squeeze(1)


def hint(projected: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error of hidden states, the student's projected (Romero et al. 2015, arXiv:1412.6550)."""
    return F.mse_loss(projected.float(), teacher.float())


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """The difference of how samples lie to each other (Park et al. 2019, arXiv:1904.05068).

    The Huber loss of pairwise distances, each over their mean, plus twice that of the angles of all triples.
    """
    ours, theirs = student.float().flatten(1), teacher.float().flatten(1)
    if len(ours) < 2:
        return ours.sum() * 0.0
    distance = F.smooth_l1_loss(_distances(ours), _distances(theirs))
    return distance + 2 * F.smooth_l1_loss(_angles(ours), _angles(theirs))


def _distances(rows: Tensor) -> Tensor:
    products = rows @ rows.T
    squares = products.diagonal()
    squared = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = torch.where(others, (squared + 1e-12).sqrt(), torch.zeros_like(squared))
    return distances / distances[others].mean().clamp(min=1e-12)


def _angles(rows: Tensor) -> Tensor:
    """The cosine at sample j between i and k, for all triples: float[n, n, n]."""
    directions = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2, eps=1e-6)
    return directions @ directions.transpose(1, 2)
