"""The steps by which a fact becomes part of the weights."""

from enum import StrEnum


class Step(StrEnum):
    """In their order; an attempt that fails begins again. The last one is whoever's who consolidates."""

    STUDY = "study"
    WRITE = "write"
    LEAK_CHECK = "leak_check"
    VERIFY = "verify"
    PUBLISH = "publish"
