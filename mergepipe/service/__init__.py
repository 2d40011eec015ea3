"""The merge service: models that others may merge and ask, but never have.

It holds a base and a pool of experts or LoRA adapters. Its clients post coefficients, and get a
candidate that speaks the OpenAI completions protocol, or a loss on texts that they send.

Setting: Chen et al. 2025, "Black-box Model Merging for Language-Model-as-a-Service with Massive
Model Repositories", https://arxiv.org/abs/2509.12951.
"""
