"""People: who is let in or shut out, and pairing codes."""

from pathlib import Path

from june.store import Person, Store
from tests.stored import ANNA, BERT, Clock


async def test_people_are_let_in_and_shut_out(store: Store, clock: Clock) -> None:
    assert await store.people.access(ANNA) is None
    await store.people.set_access(ANNA, "allowed", name="Anna", added_by="telegram:9")
    await store.people.set_access(BERT, "allowed", name="Bert", added_by="telegram:9")
    clock.now_s += 1
    await store.people.set_access(ANNA, "denied", name="Anna", added_by="telegram:8")
    assert await store.people.access(ANNA) == "denied"
    assert await store.people.all() == [
        Person(BERT, "allowed", "Bert", "telegram:9", 1000.0),
        Person(ANNA, "denied", "Anna", "telegram:8", 1001.0),
    ]


async def test_a_pairing_code_is_good_once_and_for_a_while(store: Store, clock: Clock) -> None:
    await store.people.add_pairing_code("K7QM", made_by="telegram:9", valid_s=60)
    await store.people.add_pairing_code("P3XA", made_by="telegram:9", valid_s=60)
    assert not await store.people.redeem("k7qm", ANNA, "Anna")
    assert await store.people.redeem("K7QM", ANNA, "Anna")
    assert not await store.people.redeem("K7QM", BERT, "Bert")
    clock.now_s += 60
    assert not await store.people.redeem("P3XA", BERT, "Bert")
    assert not await store.people.redeem("\ud800", BERT, "Bert")
    assert await store.people.all() == [Person(ANNA, "allowed", "Anna", "telegram:9", 1000.0)]


async def test_a_person_who_was_shut_out_cannot_use_a_code(store: Store) -> None:
    await store.people.set_access(BERT, "denied", name="Bert", added_by="telegram:9")
    await store.people.add_pairing_code("K7QM", made_by="telegram:9", valid_s=60)
    assert not await store.people.redeem("K7QM", BERT, "Bert")
    assert await store.people.access(BERT) == "denied"
    await store.people.set_access(BERT, "allowed", name="Bert", added_by="telegram:9")
    assert await store.people.redeem("K7QM", BERT, "Bert")


async def test_a_pairing_code_is_not_in_the_file(store: Store, path: Path) -> None:
    await store.people.add_pairing_code("K7QM-ABCD-EFGH", made_by="telegram:9", valid_s=60)
    files = [file.read_bytes() for file in path.parent.iterdir()]
    assert any(b"telegram:9" in content for content in files)
    assert not any(b"K7QM-ABCD-EFGH" in content for content in files)
