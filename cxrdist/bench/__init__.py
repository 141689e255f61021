"""What this machine does in a second: ours beside a plain script, in one run."""
