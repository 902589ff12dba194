"""A token names a tenant."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from enclave_app.refusals import NotAuthenticated
from enclave_app.tenants import Tenant, tenant_from

TOKEN = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE"


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand, one block."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_id_and_key_are_derived_as_the_specification_says() -> None:
    tenant = tenant_from(f"Bearer {TOKEN}")
    assert tenant.id == hkdf(TOKEN.encode(), b"blindbox/tenant-id/v1").hex()
    assert tenant.key == hkdf(TOKEN.encode(), b"blindbox/tenant-key/v1")


def test_the_same_token_is_the_same_tenant_and_another_is_another() -> None:
    assert tenant_from(f"bearer {TOKEN}") == Tenant.of(TOKEN)
    assert Tenant.of(TOKEN + "x").id != Tenant.of(TOKEN).id


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        "Bearer",
        f"Basic {TOKEN}",
        "Bearer short",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer " + "é" * 20,
        "Bearer " + "x" * 513,
        f"Bearer {TOKEN}\n",
    ],
)
def test_anything_else_is_nobody(header: str | None) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        tenant_from(header)
    assert TOKEN not in refused.value.message


def test_the_key_does_not_show_in_a_traceback() -> None:
    tenant = Tenant.of(TOKEN)
    assert tenant.key.hex() not in repr(tenant)
    assert repr(tenant.key) not in repr(tenant)
