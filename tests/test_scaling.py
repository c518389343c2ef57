"""The tables of docs/scaling.md are what the script prints."""

from pathlib import Path

import torch

from benchmarks import scaling
from npt_core.bank import Bank, FactWeights, Whitening
from npt_core.config import NPTConfig
from npt_core.model import NPTForCausalLM
from service.ledger.database import connect

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


def test_page_holds_the_tables_of_the_script_and_no_other() -> None:
    printed = [line for line in scaling.page().splitlines() if line.startswith(("|", "**"))]
    written = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(("|", "**"))]
    assert written == printed


def test_connections_are_those_of_the_pool_and_of_every_page() -> None:
    pool = connect("postgresql://user@host/name").pool
    most = pool.size() + pool._max_overflow  # type: ignore[attr-defined]
    assert most == scaling.MOST
    assert f"each replica takes up to {most}," in (PAGE.parent / "runbook.md").read_text("utf-8")


def test_a_fact_of_the_reference_model_is_as_large_as_the_service_reports() -> None:
    assert f'"columns":{scaling.COLUMNS},"bytes":{scaling.REFERENCE.blob},' in (
        PAGE.parents[1] / "README.md"
    ).read_text("utf-8")


def test_bank_takes_what_the_tables_say() -> None:
    shape = scaling.Shape("small", 16, 32, 48, 2, 4, 4, written=1)
    config = NPTConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    space = {0: Whitening(torch.zeros(48), torch.zeros(48, scaling.KEY_WIDTH))}
    bank = Bank(NPTForCausalLM(config), space)
    for version in range(1, 11):
        bank.publish(version, {f"fact {version}": FactWeights({0: shape.column})})
    table = bank.layers[0].columns
    held = [*table.parts, table.born, table.died, table.owner, table.order]
    assert sum(vector.rows.nbytes for vector in held) == 10 * shape.resident
    assert sum(vector.room.nbytes for vector in held) <= 2 * 10 * shape.resident
