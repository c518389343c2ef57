"""What dynamic modulation did to the tokens of an answer, measured once it is complete."""

from collections.abc import Awaitable, Callable, Sequence

from anyio import to_thread

from npt_core.engine import VersionGone
from service.commands import InvalidField
from service.generation import Running
from service.host import Host
from service.schemas.generate import Modulation, TouchedToken

Measure = Callable[[Sequence[int]], Awaitable[Modulation]]
"""Given the tokens of an answer, what was done to those of prompt and answer."""


def check_modulation(host: Host) -> None:
    """Raises InvalidField for a model that modulates nothing."""
    if not host.runtime.modulates:
        raise InvalidField("modulation", "needs a model with adapters; this one has none")


def measuring(host: Host, running: Running, modulation_scale: float | None) -> Measure:
    """One more pass over prompt and answer, at the version that answered and in the writers' share of the
    time: decoding is not touched, and a write under way is waited for.

    What is returned raises VersionGone where the version was let go of meanwhile.
    """
    prompt, version = running.prompt_ids, running.weights_version
    bank, runtime = host.runtime.bank, host.runtime

    def strengths(ids: Sequence[int]) -> Sequence[float]:
        if version < bank.oldest:
            raise VersionGone(version, bank.oldest, bank.version)
        return runtime.modulation_strengths(ids, version, modulation_scale)

    def computed(completion: Sequence[int]) -> Modulation:
        ids = [*prompt, *completion]
        found = host.engine.execute(lambda: strengths(ids))
        tokens = [
            TouchedToken(token=running.template.decode([id_]), token_id=id_, strength=round(strength, 4))
            for id_, strength in zip(ids, found, strict=True)
        ]
        return Modulation(prompt=tokens[: len(prompt)], completion=tokens[len(prompt) :])

    async def measure(completion: Sequence[int]) -> Modulation:
        return await to_thread.run_sync(computed, completion, limiter=host.asking)

    return measure
