"""A store that may forget what was spent is refused, by the name of the setting and its remedy."""

import pytest
from servers import Server

from extauthz.store.base import StoreError, StoreUnavailableError
from extauthz.store.failures import NEEDED_ACL
from extauthz.store.redis import RedisStore


async def complaint(server: Server, *, user: str = "", require_durable: bool = True) -> str:
    """What check_ready says; empty if it has nothing to say."""
    url = server.url
    if user:
        url = url.replace("unix://", f"unix://{user}@") + "?password=p"
    store = RedisStore.from_url(url, require_durable=require_durable)
    try:
        await store.check_ready()
    except StoreError as error:
        return str(error)
    finally:
        await store.close()
    return ""


async def test_the_embedded_settings_are_ready(any_server: Server) -> None:
    assert await complaint(any_server) == ""


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("appendonly", "no", "appendonly no, so a restart would forget what was spent: CONFIG SET"),
        ("appendfsync", "everysec", "CONFIG SET appendfsync always"),
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
    ],
)
async def test_a_setting_that_loses_spent_amounts_is_named_with_its_remedy(
    own_valkey: Server, setting: str, value: str, says: str
) -> None:
    client = own_valkey.client()
    client.config_set("maxmemory", "1gb")
    client.config_set(setting, value)
    client.close()

    said = await complaint(own_valkey)

    assert f"{setting} {value}" in said
    assert says in said
    assert str(own_valkey.socket) in said


async def test_eviction_is_no_matter_where_memory_has_no_bound(own_valkey: Server) -> None:
    client = own_valkey.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.close()

    assert await complaint(own_valkey) == ""


async def test_a_store_that_need_not_be_durable_still_must_not_evict(own_valkey: Server) -> None:
    client = own_valkey.client()
    client.config_set("appendonly", "no")
    assert await complaint(own_valkey, require_durable=False) == ""

    client.config_set("maxmemory", "1gb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.close()
    assert "noeviction" in await complaint(own_valkey, require_durable=False)


async def test_a_replica_is_not_ready_and_names_its_primary(own_valkey: Server) -> None:
    client = own_valkey.client()
    client.replicaof("127.0.0.1", "1")
    client.close()

    assert "127.0.0.1:1" in await complaint(own_valkey)


async def test_a_user_who_may_not_ask_is_told_which_permission_is_missing(
    own_valkey: Server,
) -> None:
    client = own_valkey.client()
    narrow = [word for word in NEEDED_ACL.split() if word != "+config|get"]
    client.execute_command("ACL", "SETUSER", "narrow", "on", ">p", *narrow)
    client.execute_command("ACL", "SETUSER", "enough", "on", ">p", *NEEDED_ACL.split())
    client.close()

    said = await complaint(own_valkey, user="narrow")

    assert "ACL SETUSER <user> +config|get" in said
    assert await complaint(own_valkey, user="narrow", require_durable=False) == ""
    assert await complaint(own_valkey, user="enough") == ""


async def test_a_store_that_is_away_is_not_ready(own_valkey: Server) -> None:
    own_valkey.kill()
    store = RedisStore.from_url(own_valkey.url)

    with pytest.raises(StoreUnavailableError, match=str(own_valkey.socket)):
        await store.check_ready()

    await store.close()
