"""What can go wrong between HTTP and the engine.

RequestError
├── MalformedHeader     a header that cannot be read
├── UnknownModel        another model than the one that is served
├── NotReady            another replica should answer
├── VersionNotReached   the version that was asked for was not published in time
└── FailedGeneration    the engine failed while it answered
"""


class RequestError(Exception):
    """Base of the errors of the HTTP edge."""


class MalformedHeader(RequestError):
    def __init__(self, header: str, reason: str) -> None:
        super().__init__(f"{header} {reason}")


class UnknownModel(RequestError):
    def __init__(self, wanted: str, served: str) -> None:
        super().__init__(f"model {wanted} is not served here, {served} is")


class VersionNotReached(RequestError):
    def __init__(self, wanted: int, newest: int) -> None:
        super().__init__(f"version {wanted} is not published, the newest is {newest}")


class NotReady(RequestError):
    """Traffic should go elsewhere; the message is the reason."""


class FailedGeneration(RequestError):
    def __init__(self) -> None:
        super().__init__("the answer could not be completed")
