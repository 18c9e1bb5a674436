"""Drop-in losses for other people's trainers: the peer's arithmetic, signature and errors.

Change one import, or let `barlow_fast.patch` change it. No adapter imports the library it stands
in for. Each module says which numbers it keeps, quirks included.

| module | stands in for |
|---|---|
| `adapters.lightly` | `BarlowTwinsLoss`, `VICRegLoss`, `FroSSLLoss` of `lightly.loss` |
| `adapters.solo_learn` | the functions of Barlow Twins, VICReg and FroSSL of `solo.losses` |
| `adapters.mmpretrain` | `LatentCrossCorrelationHead`, `CrossCorrelationLoss` of mmpretrain |
| `adapters.mmselfsup` | the same two of mmselfsup |
| `adapters.vissl` | `BarlowTwinsCriterion`, `BarlowTwinsLoss` of `vissl.losses` |
| `adapters.official` | `BarlowTwins` of facebookresearch/barlowtwins `main.py` |
| `adapters.monai` | `monai.losses.BarlowTwinsLoss` |
| `adapters.stable_pretraining` | the same, but `VCRegLoss` for FroSSL, of its `losses` |
| `adapters.catalyst` | `catalyst.contrib.losses.BarlowTwinsLoss` |
| `adapters.lightning_tutorial` | `BarlowTwinsLoss` of the Lightning tutorial |
| `adapters.susmelj` | `BarlowTwinsLoss` of IgorSusmelj/barlowtwins |
| `adapters.ffcv_ssl` | `BarlowTwinsLoss` of facebookresearch/FFCV-SSL |
| `adapters.lifestream` | `ptls.frames.coles.losses.BarlowTwinsLoss` of pytorch-lifestream |
| `adapters.vicreg` | `VICReg` of facebookresearch/vicreg `main_vicreg.py` |
| `adapters.mix_bt` | the loss with mixed samples inside `train` of wgcban/mix-bt |
| `adapters.hsic` | the loss inside `train` of yaohungt/Barlow-Twins-HSIC |

What all of them change besides speed and memory: embeddings in half precision, or under autocast,
give a float32 loss, because sums are never rounded to half precision; and the loss cannot be
differentiated twice.
"""
