"""``python -m rlhf_pg``: the command line, as ``accelerate launch -m rlhf_pg train RECIPE`` needs it."""

from rlhf_pg.cli import main

if __name__ == "__main__":
    main()
