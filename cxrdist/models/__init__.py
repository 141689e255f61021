"""Backbones through timm, weights in, model folders out."""
