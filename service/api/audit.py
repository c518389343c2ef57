"""GET /audit: who did what."""

from fastapi import APIRouter

from service import problems
from service.api.cursors import Cursor, PageSize, decode_cursor, encode_cursor
from service.api.dependencies import HostDep, needs
from service.api.documentation import READING, answers
from service.ledger import Position
from service.ledger.api_keys import Scope
from service.schemas.audit import AuditOut
from service.schemas.common import Page

router = APIRouter(tags=["audit"], dependencies=[needs(Scope.ADMIN, Scope.ADMIN)])


@router.get("/audit", summary="Who did what", responses=answers(problems.INVALID, *READING))
def list_audit(
    host: HostDep,
    limit: PageSize = 100,
    cursor: Cursor = None,
) -> Page[AuditOut]:
    """Oldest first. Each entry's hash covers the one before, so none can be changed or left out."""
    after = 0 if cursor is None else decode_cursor(cursor).version
    found = host.ledger.audit(after, limit + 1)
    page = found[:limit]
    following = encode_cursor(Position(page[-1].seq, "")) if len(found) > limit else None
    items = [AuditOut.of(entry) for entry in page]
    return Page(items=items, next_cursor=following, weights_version=host.version)
