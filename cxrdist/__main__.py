"""``python -m cxrdist``, and what `torchrun -m cxrdist` and `deepspeed --module cxrdist` start."""

from cxrdist.cli.main import run

if __name__ == "__main__":
    run()
