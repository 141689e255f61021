"""The engine, the loop and the checkpoints that pretraining and fine-tuning share."""
