"""GET /keys/self: what the key that was shown allows."""

from fastapi import APIRouter, Depends

from service.api.dependencies import HostDep, ShownKey, shown_key
from service.schemas.keys import KeyOut

router = APIRouter(prefix="/keys", tags=["keys"], dependencies=[Depends(shown_key)])


@router.get("/self", summary="Who am I")
def get_own_key(host: HostDep, key: ShownKey) -> KeyOut:
    """For any valid key, whatever its scopes. A server without keys allows everything."""
    return KeyOut.of(key, host.version)
