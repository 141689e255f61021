"""What this machine does in a second: ours beside a plain script or a peer, in one run."""
