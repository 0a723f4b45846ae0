# SPDX-License-Identifier: Apache-2.0
"""wolfSSL's ECCSI and SAKKE against ours: same octets, same verdicts, in both directions."""

from __future__ import annotations

import pytest

from mikey import Kms, eccsi, sakke
from mikey.errors import DecapsulationFailed

from .conftest import ALICE, BOB, NOW, counting_random
from .wolfssl import NotThere, Wolf, WolfError

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def wolf() -> Wolf:
    try:
        return Wolf()
    except NotThere as missing:
        pytest.skip(str(missing))


def test_signatures_hold_in_both_directions(wolf: Wolf, kms: Kms) -> None:
    draw = counting_random(11)
    for number in range(12):
        key_set = kms.issue(f"sip:user{number}@example.org", NOW)
        octets, kpak = draw(number * 37), kms.certificate.pub_auth_key
        ours = key_set.sign(octets)
        assert wolf.verify(octets, ours, key_set.uid, kpak)
        theirs = wolf.sign(wolf.signer(key_set.uid, key_set.ssk.reveal(), key_set.pvt, kpak), octets)
        assert len(theirs) == 129
        eccsi.verify(octets, theirs, key_set.uid, kpak)
        for at in (0, 31, 40, 63, 100, 128):
            damaged = ours[:at] + bytes((ours[at] ^ 1,)) + ours[at + 1 :]
            try:
                said = wolf.verify(octets, damaged, key_set.uid, kpak)
            except WolfError:
                said = False
            assert not said
            with pytest.raises(eccsi.BadSignature):
                eccsi.verify(octets, damaged, key_set.uid, kpak)


def test_encapsulations_are_the_same_octets(wolf: Wolf, kms: Kms) -> None:
    draw, z = counting_random(12), kms.certificate.pub_enc_key
    key = wolf.sakke_key(z)
    for number in range(24):
        identity, ssv = draw(32), draw(16)
        if number < 6:
            ssv = (bytes(16), b"\xff" * 16, bytes(15) + b"\1", b"\1" + bytes(15), ssv, ssv)[number]
        if number == 5:
            identity = bytes(32)[:-1] + b"\1"
        assert wolf.encapsulate(key, ssv, identity) == sakke.encapsulate(ssv, identity, z)


def test_a_leading_zero_of_g_to_the_r_is_hashed_alike(wolf: Wolf, kms: Kms) -> None:
    """Trap T1 with a witness: wolfSSL keeps the zero as the RFC says."""
    draw, z, identity = counting_random(13), kms.certificate.pub_enc_key, kms.issue(BOB, NOW).uid
    sakke.power_table.build()
    while True:
        ssv = draw(16)
        if not int(sakke.power_table.power(sakke.hash_to_range(ssv + identity, sakke.Q))) >> 1016:
            break
    assert wolf.encapsulate(wolf.sakke_key(z), ssv, identity) == sakke.encapsulate(ssv, identity, z)


@pytest.mark.parametrize("table", [False, True])
def test_what_one_encapsulates_the_other_opens(wolf: Wolf, kms: Kms, table: bool) -> None:
    draw, z = counting_random(14), kms.certificate.pub_enc_key
    for uri in (ALICE, BOB):
        key_set = kms.issue(uri, NOW)
        receiver = wolf.receiver(key_set.uid, key_set.rsk.reveal(), z, table=table)
        for _ in range(3):
            ssv = draw(16)
            sed = sakke.encapsulate(ssv, key_set.uid, z)
            assert wolf.decapsulate(receiver, sed) == ssv
            assert sakke.decapsulate(sed, key_set.receiver_key)[0] == ssv
            damaged = sed[:-1] + bytes((sed[-1] ^ 1,))
            with pytest.raises(WolfError):
                wolf.decapsulate(receiver, damaged)
            with pytest.raises(DecapsulationFailed):
                sakke.decapsulate(damaged, key_set.receiver_key)
    with pytest.raises(WolfError):
        wolf.receiver(kms.issue(ALICE, NOW).uid, kms.issue(BOB, NOW).rsk.reveal(), z)
