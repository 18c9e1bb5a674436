"""Features in two dimensions, to be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

# Below, neighbourhoods are too small for t-SNE to lay out.
FEWEST_FOR_TSNE = 30
# Standard deviation of unit vectors along their main direction; float32 rounds at 1e-7.
LEAST_SPREAD = 1e-6


def project(features: Tensor) -> tuple[Tensor, str]:
    """A place on a map for every feature vector, its length left out as in k-NN scores.

    Neighbourhoods are kept by t-SNE where scikit-learn is installed and there are 30 vectors or
    more (van der Maaten and Hinton, *Visualizing Data using t-SNE*, JMLR 2008); else the two
    directions of largest variance are shown. The same features give the same map.

    Args:
        features: (N, F) floating point and finite, on the CPU.

    Returns:
        ((N, 2) float64, the name of the method).

    Raises:
        ValueError: a value that is not finite.
    """
    if not features.isfinite().all():
        raise ValueError("features that are not finite have no place on a map")
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    centred = directions - directions.mean(0)
    linear = _principal(centred)
    spread = linear[:, 0].std(correction=0)
    # Features that are all one vector have no neighbourhoods; scikit-learn starts from places
    # divided by their spread, and crashes the process where it is 0.
    if len(features) >= FEWEST_FOR_TSNE and features.shape[1] > 2 and spread > LEAST_SPREAD:
        try:
            from sklearn.manifold import TSNE
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            method = TSNE(
                perplexity=min(30, (len(features) - 1) / 3),
                init=(1e-4 * linear / spread).float().numpy(),
                random_state=0,
            )
            # A thousand steps of a millisecond each: threads that wait for one another at every
            # step take ten times as long on cores that are busy.
            with threadpool_limits(1):
                places = method.fit_transform(centred.numpy())
            return torch.as_tensor(places, dtype=torch.float64, device="cpu"), "t-SNE"
    return linear, "principal components"


def _principal(centred: Tensor) -> Tensor:
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
