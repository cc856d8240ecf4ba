"""What an autoencoder is told beside the numbers of its pixels: how alike pictures look, and whether they seem real."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from diff_diffusion.tensors import mean_flat


def unlike(seen: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """How unlike two batches look to a network: [B].

    Σ over layers of the mean over places of ‖a/‖a‖ - b/‖b‖‖², of the features of each place: LPIPS with no layer or
    channel weighed more than another.

    Args:
        seen, other: features of each layer, [B, C, ...].

    Source: Zhang et al., arXiv 1801.03924.
    """
    total = torch.zeros(len(seen[0]), dtype=seen[0].dtype, device=seen[0].device)
    for a, b in zip(seen, other, strict=True):
        apart = functional.normalize(a, dim=1, eps=1e-6) - functional.normalize(b, dim=1, eps=1e-6)
        total = total + apart.pow(2).sum(1).flatten(1).mean(1)
    return total


def told_apart(critic: nn.Module, real: Tensor, decoded: Tensor) -> Tensor:
    """What the critic learns from, [B]: the hinge loss ½ (max(0, 1 - D(x)) + max(0, 1 + D(x̂))), mean over patches.

    Source: Esser et al., arXiv 2012.09841; the hinge, Lim & Ye, arXiv 1705.02894.
    """
    on_real, on_decoded = critic(real), critic(decoded.detach())
    return 0.5 * (mean_flat(functional.relu(1.0 - on_real)) + mean_flat(functional.relu(1.0 + on_decoded)))


def taken_for_real(critic: nn.Module, decoded: Tensor) -> Tensor:
    """What the decoder learns from, [B]: -D(x̂), mean over patches, with a gradient in x̂ alone.

    The critic's weights take none of it, so that one step of one optimizer moves both sides, each its own way.
    """
    fixed = {name: weight.detach() for name, weight in critic.named_parameters()}
    return -mean_flat(functional_call(critic, fixed, (decoded,)))


def balance(loss: Tensor, against: Tensor, weight: nn.Parameter, most: float = 1e4) -> Tensor:
    """‖∂ loss / ∂w‖ / ‖∂ against / ∂w‖, scalar: by what `against` pulls as hard at the weight as `loss` does.

    Source: Esser et al., arXiv 2012.09841.
    """
    one, other = (torch.autograd.grad(each, weight, retain_graph=True)[0].norm() for each in (loss, against))
    return (one / (other + 1e-6)).clamp(max=most).detach()


def ssim(images: Tensor, other: Tensor, span: float) -> Tensor:
    """Structural similarity of two batches of images, 1 for the same: [B].

    With means, variances and covariance under a Gaussian window of 11 pixels and deviation 1.5 (the largest odd number
    of pixels that fits, where sides are shorter), wherever the window lies within the image.

    Args:
        images, other: [B, C, H, W].
        span: from the data's lowest to its highest value.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
    """
    images, other = images.double(), other.double()  # variances are differences of large numbers
    size = min(11, *(side - (side + 1) % 2 for side in images.shape[2:]))
    places = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    row = torch.softmax(-(places**2) / (2 * 1.5**2), 0)
    window = (row[:, None] * row)[None, None]

    def mean(x: Tensor) -> Tensor:
        return functional.conv2d(x.flatten(0, 1)[:, None], window)

    one, two = mean(images), mean(other)
    variance, covariance = (mean(images**2) - one**2, mean(other**2) - two**2), mean(images * other) - one * two
    small, less = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * one * two + small) / (one**2 + two**2 + small)
    each = alike * (2 * covariance + less) / (variance[0] + variance[1] + less)
    return each.flatten(1).mean(1).view(len(images), -1).mean(1)
