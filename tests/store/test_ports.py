"""Ports of our own processes."""

from headrace.store.ports import free_port


def test_a_port_of_ours_is_none_that_the_system_gives_away() -> None:
    assert {free_port("127.0.0.1", 0) in range(31_000, 32_768) for _ in range(8)} == {True}


def test_two_servers_of_a_process_have_two_ports_although_none_listens_yet() -> None:
    chosen = [free_port("127.0.0.1", 0) for _ in range(200)]
    assert len({*chosen}) == len(chosen)
