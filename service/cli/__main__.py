"""`python -m service.cli`, as `accelerate launch -m service.cli train ...` starts it."""

from service.cli import main

main()
