"""`python -m barlow_fast`, for launchers that start modules: torchrun -m barlow_fast pretrain."""

from .cli import main

main()
