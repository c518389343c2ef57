"""Neuro-Plastic Transformers: Llama whose MLPs learn. Importing registers the architecture."""

from npt_core.config import NPTConfig
from npt_core.model import NPTForCausalLM, NPTModel

__all__ = ["NPTConfig", "NPTForCausalLM", "NPTModel"]
