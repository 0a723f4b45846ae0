# SPDX-License-Identifier: Apache-2.0
"""Every published value first: the RFCs' appendices, TS 33.180's example, several vendors' keys."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives import keywrap
from gmpy2 import mpz

from mikey import KeySet, KmsCertificate, Secret, derive, eccsi, sakke
from mikey.identity import KeyPeriods, kdf_input, ntp_decode, ntp_encode, tel_identifier, uid
from mikey.payloads import Opaque, decode_chain, encode_chain

H = bytes.fromhex


def test_eccsi_reproduces_rfc_6507_appendix_a(vectors: dict[str, Any]) -> None:
    v = vectors["rfc6507_appendix_a"]
    ksak, identity, kpak = mpz(int(v["KSAK"], 16)), H(v["ID"]), H(v["KPAK"])
    assert eccsi.public_point(ksak) == kpak
    ssk, pvt = eccsi.issue(ksak, kpak, identity, mpz(int(v["v"], 16)))
    assert (ssk, pvt) == (H(v["SSK"]), H(v["PVT"]))
    eccsi.validate_ssk(kpak, identity, ssk, pvt)
    hs = eccsi.hs(kpak, identity, pvt)
    assert hs == H(v["HS"])
    signature = eccsi.sign(H(v["M"]), ssk, hs, pvt, j=int(v["j"], 16))
    assert signature == H(v["signature"])
    eccsi.verify(H(v["M"]), signature, identity, kpak, eccsi.SignerCache())


def test_the_parameters_are_those_of_rfc_6509(vectors: dict[str, Any]) -> None:
    v = vectors["sakke_parameter_set_1"]
    from mikey import field

    assert (int(v["p"], 16), int(v["q"], 16)) == (field.P, field.Q)
    assert (int(v["Px"], 16), int(v["Py"], 16)) == field.G
    assert int(v["g"], 16) == field.G_PAIRED
    assert field.P == 4 * field.Q - 1 and field.P % 4 == 3 and field.on_curve(*field.G)


def test_sakke_reproduces_rfc_6508_appendix_a(vectors: dict[str, Any]) -> None:
    v = vectors["rfc6508_appendix_a"]
    z, b, ssv, sed = mpz(int(v["z"], 16)), H(v["b"]), H(v["SSV"]), H(v["SED"])
    assert sakke.public_point(z) == H(v["Z"])
    rsk = sakke.issue(z, b, mpz(987654321))
    assert rsk == H(v["RSK"])
    sakke.validate_public(H(v["Z"]))
    receiver = sakke.ReceiverKey(rsk, b, H(v["Z"]))
    receiver.validate()
    assert int(sakke.hash_to_range(ssv + b, sakke.Q)) == int(v["r"], 16)
    assert sakke.power_table.power(mpz(int(v["r"], 16))) == int(v["g_r"], 16)
    assert sakke.encapsulate(ssv, b, H(v["Z"])) == sed
    assert sakke.decapsulate(sed, receiver) == (ssv, frozenset())


def test_hash_to_range_has_the_intermediate_values_of_rfc_6508(vectors: dict[str, Any]) -> None:
    v = vectors["rfc6508_hash_to_range"]
    assert int(sakke.hash_to_range(H(v["M"]), sakke.Q)) == int(v["v_mod_q"], 16)
    joined = int(v["v1"] + v["v2"] + v["v3"] + v["v4"], 16)
    assert int(sakke.hash_to_range(H(v["M"]), mpz(1) << 1024, 4)) == joined
    assert int(sakke.hash_to_range(H(v["M"]), mpz(1) << 256)) == int(v["v1"], 16)


def test_uids_of_ts_33180_and_of_vendors(vectors: dict[str, Any], vendors: dict[str, Any]) -> None:
    checked = 0
    for v in vectors["uid_3gpp"] + [u for u in vectors["uid_streamwide_unit"] if not u.get("inconsistent")]:
        number = v.get("period_no", v.get("expect_period_no"))
        if "ntp_time" in v:
            periods = KeyPeriods(v["period"], v["offset"])
            assert periods.number(v["ntp_time"] - 2208988800) == number
        assert uid(v["uri"], v["kms_uri"], v["period"], v["offset"], number).hex() == v["uid_hex"]
        checked += 1
    for v in vendors["mikey_sakke_uid"]:
        if not v["oracle_check"]["matches"]:
            continue
        u = uid(v["uri"], v["kms_uri"], v["key_period"], v["key_period_offset"], v["key_period_no"])
        assert u.hex() == v["uid"]
        checked += 1
    assert checked >= 18


def test_the_octets_under_the_uid_hash_are_those_of_the_example(vectors: dict[str, Any]) -> None:
    v = vectors["uid_input_octets"]
    parts = (b"MIKEY-SAKKE-UID", b"sip:user@example.org", b"kms.example.org")
    s = kdf_input(0, *parts, (2592000).to_bytes(3, "big"), b"\0", (1388).to_bytes(2, "big"))
    assert s.hex() == v["S"]


def test_key_period_arithmetic(vectors: dict[str, Any]) -> None:
    for v in vectors["key_period_arithmetic"]["examples"]:
        periods = KeyPeriods(v["P3"], v["P4"])
        assert periods.number(v["unix"]) == v["P5"]
        assert periods.start(v["P5"]) + 2208988800 == v["period_start_ntp"]
        assert periods.end(v["P5"]) + 2208988800 == v["period_end_ntp_exclusive"]


def test_the_keyprov_time_of_annex_d() -> None:
    assert ntp_encode(1393144754.0).hex().upper() == "D6B4323200000000"
    assert ntp_decode(H("D6B4323200000000")) == 1393144754.0


def test_the_native_identifier_is_that_of_rfc_6509(vectors: dict[str, Any]) -> None:
    assert tel_identifier("tel:+447700900123", 2011, 2) == H(vectors["rfc6508_appendix_a"]["b"])


def test_guk_ids_and_srtp_keys_of_etherstack(vectors: dict[str, Any]) -> None:
    for v in vectors["etherstack"]["items"]:
        key, key_id, rand = H(v["key"]), int(v["key_id"], 16), H(v["rand"] or "")
        csb_id = key_id
        if v.get("guk_id"):
            assert derive.guk_id(key, key_id, v["uri"]) == int(v["guk_id"], 16)
            assert derive.guk_id(key, int(v["guk_id"], 16), v["uri"]) == key_id
            csb_id = int(v["guk_id"], 16)
        if v.get("srtp_master_key"):
            master, salt = derive.srtp_master(key, v["cs_id"], csb_id, rand)
            assert (master.hex(), salt.hex()) == (v["srtp_master_key"], v["srtp_master_salt"])


def test_key_derivations_of_streamwide_and_the_captured_ones(vectors: dict[str, Any]) -> None:
    for v in vectors["key_deriv_streamwide"]["items"]:
        constant = {"TEK": derive.TEK, "ENCR": derive.ENCR}[v["label"]]
        csb_id, tgk, rand = int(v["csb_id"], 16), H(v["tgk"]), H(v["rand"])
        assert derive.prf(tgk, derive.label(constant, v["cs_id"], csb_id, rand), 16).hex() == v["key"]
        assert derive.prf(tgk, derive.label(derive.SALT, v["cs_id"], csb_id, rand), 12).hex() == v["salt"]
    for v in vectors["eazon"]["key_salt"]:
        for cs_id, expected in v["out"].items():
            out = derive.srtp_master(H(v["ssv"]), int(cs_id), int(v["csb_id"], 16), H(v["rand"]))
            assert b"".join(out).hex() == expected
    for v in vectors["derived_self_computed"]["items"]:
        for cs_id, expected in v["per_cs_id"].items():
            master, salt = derive.srtp_master(H(v["tgk"]), int(cs_id), int(v["csb_id"], 16), H(v["rand"]))
            assert (master.hex(), salt.hex()) == (expected["srtp_master_key"], expected["srtp_master_salt"])
            assert derive.srtp_session(master, salt, 0, 16).hex() == expected["srtp_session_key_gcm"]
            assert derive.srtp_session(master, salt, 5, 12).hex() == expected["srtcp_session_salt_gcm"]
        assert derive.dpck(H(v["tgk"]), int(v["csb_id"], 16)).hex() == v["dpck"]


def test_dpck_of_streamwide(vectors: dict[str, Any]) -> None:
    v = vectors["dpck"]
    assert derive.dpck(H(v["dppk"]), int(v["dppk_id"], 16)).hex() == v["dpck"]


def test_srtp_session_keys_of_rfc_3711_and_6188(vectors: dict[str, Any]) -> None:
    for v in vectors["srtp_kdf"]:
        for label, expected in v["outputs"].items():
            out = derive.srtp_session(H(v["master_key"]), H(v["master_salt"]), int(label), len(expected) // 2)
            assert out.hex() == expected.lower()


def test_key_wrap_of_rfc_3394_and_5649(vectors: dict[str, Any]) -> None:
    for v in vectors["key_wrap"]:
        wrap = keywrap.aes_key_wrap if v["alg"] == "kw-aes256" else keywrap.aes_key_wrap_with_padding
        assert wrap(H(v["kek"]), H(v["key"])).hex() == v["wrap"]


def test_messages_of_rfc_4567_are_read_and_written_back(vectors: dict[str, Any]) -> None:
    for v in vectors["mikey_rfc4567_examples"]:
        octets = base64.b64decode(v["b64"])
        header, payloads, _ = decode_chain(octets)
        assert encode_chain(header, payloads) == octets
        assert any(isinstance(p, Opaque) for p in payloads)


def _validate(uid_hex: str, keys: dict[str, str], z: str, kpak: str) -> None:
    """SSK and RSK equations of one published key set."""
    names = {k.lower(): v for k, v in keys.items()}
    rsk = names.get("rsk") or names["userdecryptkey"]
    ssk = int(names.get("ssk") or names["usersigningkeyssk"], 16).to_bytes(32, "big")
    pvt = names.get("pvt") or names["userpubtokenpvt"]
    eccsi.validate_ssk(H(kpak), H(uid_hex), ssk, H(pvt))
    sakke.ReceiverKey(H(rsk), H(uid_hex), H(z)).validate()


def test_published_key_sets_satisfy_their_equations(vectors: dict[str, Any]) -> None:
    v = vectors["softil_keys"]
    _validate(v["uid"], v, v["Z"], v["KPAK"])
    for name in ("streamwide", "eazon"):
        kms = vectors[name]["kms"]
        for user in vectors[name]["users"]:
            _validate(user["UserID"], user, kms["PubEncKey"], kms["PubAuthKey"])
    alea = vectors["alea"]
    for user in alea["users"][:3]:  # the fourth's SSK is published wrong, as the file says
        _validate(user["UserID"], user, alea["kms"]["PubEncKey"], alea["kms"]["PubAuthKey"])


def test_a_published_key_set_with_a_foreign_rsk_is_refused(vectors: dict[str, Any]) -> None:
    kms, (one, two) = vectors["streamwide"]["kms"], vectors["streamwide"]["users"][:2]
    receiver = sakke.ReceiverKey(H(two["UserDecryptKey"]), H(one["UserID"]), H(kms["PubEncKey"]))
    with pytest.raises(sakke.InvalidKey):
        receiver.validate()


def test_softils_encapsulated_data_opens(vectors: dict[str, Any], vendors: dict[str, Any]) -> None:
    v = vectors["softil_sed"]
    receiver = sakke.ReceiverKey(H(v["RSK"]), H(v["uid"]), H(v["Z"]))
    ssv, _ = sakke.decapsulate(H(v["SED"]), receiver)
    assert ssv.hex() == vendors["sakke_softil"]["independent_ssv"]


def test_key_sets_of_seven_periods_are_valid(vectors: dict[str, Any]) -> None:
    for k in vectors["key_period_inference"]["keys"]:
        certificate = KmsCertificate(
            k["kms_uri"], H(k["z"]), H(k["kpak"]), user_key_period=k["key_period"], user_key_offset=k["offset"]
        )
        u = certificate.uid(k["user_uri"], k["key_period_no"])
        key_set = KeySet(
            k["user_uri"], u, k["key_period_no"], certificate, Secret(H(k["rsk"])), Secret(H(k["ssk"])), H(k["pvt"])
        )
        key_set.validate()
