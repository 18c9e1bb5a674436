"""Drop-in losses for other people's trainers: the peer's arithmetic, signature and errors.

Change one import, or let `barlow_fast.patch` change it. No adapter imports the library it stands
in for. Each module says which numbers it keeps, quirks included.

| module | stands in for |
|---|---|
| `adapters.lightly` | `lightly.loss.BarlowTwinsLoss` |
| `adapters.solo_learn` | `solo.losses.barlow.barlow_loss_func` |
| `adapters.mmpretrain` | `LatentCrossCorrelationHead`, `CrossCorrelationLoss` of mmpretrain |
| `adapters.mmselfsup` | the same two of mmselfsup |
| `adapters.vissl` | `BarlowTwinsCriterion`, `BarlowTwinsLoss` of `vissl.losses` |
| `adapters.official` | `BarlowTwins` of facebookresearch/barlowtwins `main.py` |
| `adapters.monai` | `monai.losses.BarlowTwinsLoss` |
| `adapters.stable_pretraining` | `stable_pretraining.losses.BarlowTwinsLoss` |
| `adapters.catalyst` | `catalyst.contrib.losses.BarlowTwinsLoss` |
| `adapters.lightning_tutorial` | `BarlowTwinsLoss` of the Lightning tutorial |
| `adapters.susmelj` | `BarlowTwinsLoss` of IgorSusmelj/barlowtwins |
| `adapters.ffcv_ssl` | `BarlowTwinsLoss` of facebookresearch/FFCV-SSL |
| `adapters.lifestream` | `ptls.frames.coles.losses.BarlowTwinsLoss` of pytorch-lifestream |
| `adapters.hsic` | the loss inside `train` of yaohungt/Barlow-Twins-HSIC |

What all of them change besides speed and memory: embeddings in half precision, or under autocast,
give a float32 loss, because sums are never rounded to half precision; and the loss cannot be
differentiated twice.
"""
