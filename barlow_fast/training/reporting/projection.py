"""Features in two dimensions, to be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

# Below, neighbourhoods are too small for t-SNE to lay out.
FEWEST_FOR_TSNE = 30


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
    if len(features) >= FEWEST_FOR_TSNE and min(features.shape) > 2 and centred.any():
        try:
            from sklearn.manifold import TSNE
            from threadpoolctl import threadpool_limits
        except ImportError:
            pass
        else:
            perplexity = min(30, (len(features) - 1) / 3)
            # A thousand steps of a millisecond each: threads that wait for one another at every
            # step take ten times as long on cores that are busy.
            with threadpool_limits(1):
                places = TSNE(perplexity=perplexity, random_state=0).fit_transform(centred.numpy())
            return torch.as_tensor(places, dtype=torch.float64), "t-SNE"
    return _principal(centred), "principal components"


def _principal(centred: Tensor) -> Tensor:
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    places = centred @ directions[:2].T
    return torch.nn.functional.pad(places, (0, 2 - places.shape[1]))
