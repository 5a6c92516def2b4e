"""One positive and one negative example for each recogniser, so that none loses its checksum, context or pattern.

In the positive one the number is in braces. The negative one has a wrong check digit, or, without one, lacks the
context words. Most numbers are published examples or unassigned.
"""

import pytest

from headrace.policy.budget import Budget
from headrace.policy.recognisers.catalogue import RECOGNISERS
from headrace.policy.recognisers.numbers import CARD
from headrace.policy.recognisers.recogniser import Recogniser
from headrace.policy.scanning import Scanner
from headrace.policy.text.normalisation import normalise

EXAMPLES = {
    "email": ("{kim@naver.com}です。", "kim@naver"),
    "email.wide": ("宛先: {山田@例え.jp}", "宛先: 山田@例え"),
    "email.literal": ("{kim@[192.0.2.7]}", "kim@[192.0.2.700]"),
    "email.spelled": ("{kim[at]naver[dot]com}", "kim[at]naver[dot]comm"),
    "phone": ("phone {+1 415 555 2671}", "order 8143 8673"),
    "card": ("Visa {4111 1111 1111 1111}", "Visa 4111 1111 1111 1112"),
    "iban": ("{SA0380000000608010167519}", "SA0380000000608010167518"),
    "us_ssn": ("SSN {374-24-9938}", "SSN 374-00-9938"),
    "national_id.passport": ("Passport no. {C01X00T47}", "order C01X00T47"),
    "national_id.at_vnr": ("SVNR {3389180540}", "SVNR 3389180549"),
    "national_id.be_rijksregister": ("numéro national {01.09.27-088.88}", "numéro national 01.09.27-088.89"),
    "national_id.bg_egn": ("ЕГН {8032056031}", "ЕГН 8032056039"),
    "national_id.ch_ahv": ("AHV {756.9217.0769.85}", "AHV 756.9217.0769.89"),
    "national_id.cz_rodne_cislo": ("RČ: {760214/7465}", "RČ: 760214/7469"),
    "national_id.de_ausweis": ("Personalausweis {L01X00T47}", "order L01X00T47"),
    "national_id.de_rentenversicherung": ("Rentenversicherung {65 170839 J 008}", "order 65 170839 J 008"),
    "national_id.de_steuer_id": ("IdNr. {97219345862}", "IdNr. 97219345869"),
    "national_id.dk_cpr": ("CPR {211062-5629}", "CPR 211052-5629"),
    "national_id.ee_isikukood": ("isikukood {36805280109}", "isikukood 36805280108"),
    "national_id.es_dni": ("DNI {54362315K}", "DNI 54362319K"),
    "national_id.es_nie": ("NIE: {Z3536878N}", "NIE: Z3536879N"),
    "national_id.fi_hetu": ("HETU {131052-308T}", "HETU 131052-309T"),
    "national_id.fr_nir": ("NIR {198094341133095}", "NIR 198094341133099"),
    "national_id.fr_spi": ("numéro fiscal {3023217600053}", "numéro fiscal 3023217600054"),
    "national_id.gb_driver": ("driving licence {MORGA657054SM9IJ}", "order MORGA657054SM9IJ"),
    "national_id.gb_nhs": ("NHS No. {7708518342}", "NHS No. 7708518349"),
    "national_id.gb_nino": ("NINO {WE034688D}", "NINO GB034688D"),
    "national_id.gb_utr": ("UTR {1955839661}", "UTR 1955839669"),
    "national_id.gr_amka": ("ΑΜΚΑ {01013099997}", "ΑΜΚΑ 01013099999"),
    "national_id.hr_oib": ("OIB {33392005961}", "OIB 33392005969"),
    "national_id.hu_taj": ("TAJ {111 111 110}", "TAJ 111 111 119"),
    "national_id.ie_pps": ("PPS {6433435F}", "PPS 6433439F"),
    "national_id.is_kennitala": ("kt. {210642-2939}", "kt. 210642-2938"),
    "national_id.it_codice_fiscale": ("C.F. {rccmnl83s18d969h}", "C.F. rccmnl83s18d968h"),
    "national_id.lt_asmens_kodas": ("a. k. {36208266532}", "a. k. 36208266539"),
    "national_id.lv_personas_kods": ("p.k. {020552-39318}", "p.k. 020552-39319"),
    "national_id.nl_bsn": ("BSN {111222333}", "BSN 111222339"),
    "national_id.no_fodselsnummer": ("fnr {110800 86166}", "fnr 110800 86169"),
    "national_id.pl_dowod": ("dowód {ABA 300000}", "order ABA 300000"),
    "national_id.pl_pesel": ("PESEL {44051401359}", "PESEL 44051401358"),
    "national_id.pt_cc": ("cartão de cidadão {00000000 0 ZZ4}", "cartão de cidadão 00000000 0 ZZ9"),
    "national_id.pt_nif": ("NIF {501964843}", "NIF 501964849"),
    "national_id.ro_cnp": ("CNP {1630615123457}", "CNP 1630615123459"),
    "national_id.ru_inn": ("ИНН {199211146140}", "ИНН 199211146149"),
    # The sum is 201, so that both remainders count: 201 mod 101 mod 100 is 0.
    "national_id.ru_snils": ("СНИЛС {087-654-302 00}", "СНИЛС 087-654-302 01"),
    "national_id.se_personnummer": ("pnr {19030521-0460}", "pnr 19030521-0469"),
    "national_id.tr_tckimlik": ("TCKN {66533606768}", "TCKN 66533606769"),
    "national_id.ua_rnokpp": ("РНОКПП {1759013776}", "РНОКПП 1759013779"),
    "national_id.yu_jmbg": ("EMŠO {2406996504089}", "EMŠO 2406996504088"),
    "national_id.ae_emirates": ("Emirates ID {784-1990-1234567-6}", "Emirates ID 784-1990-1234567-9"),
    "national_id.ar_cuil": ("CUIL {23658251104}", "CUIL 23658251109"),
    "national_id.ar_dni": ("DNI {20.123.456}", "order 20.123.456"),
    "national_id.au_medicare": ("Medicare {2123 45670 1}", "Medicare 2123 45679 1"),
    "national_id.au_tfn": ("TFN {123 456 782}", "TFN 123 456 789"),
    "national_id.br_cpf": ("cpf: {39053344705}", "cpf: 39053344709"),
    "national_id.ca_sin": ("NAS : {265253906}", "NAS : 265253909"),
    "national_id.cl_rut": ("RUT {12.531.909-2}", "RUT 12.531.909-9"),
    "national_id.cn_ric": ("身份证 {360426199101010071}", "身份证 360426199101010079"),
    "national_id.co_cedula": ("C.I. {1741762866}", "order 1741762866"),
    "national_id.do_cedula": ("cédula {001-1391820-5}", "cédula 001-1391820-9"),
    "national_id.ec_cedula": ("C.I. {1741762866}", "C.I. 1741762869"),
    "national_id.eg_id": ("الرقم القومي {29001011234567}", "الرقم القومي 99001011234567"),
    "national_id.gh_card": ("{GHA-123456789-0}", "GHA-12345678-0"),
    "national_id.hk_id": ("HKID: {T176691(5)}", "HKID: T176691(9)"),
    "national_id.id_nik": ("NIK: {3578011307883171}", "NIK: 3578011300883171"),
    "national_id.il_id": ("ת.ז. {625252143}", "ת.ז. 625252149"),
    "national_id.in_aadhaar": ("आधार {315823998447}", "आधार 315823998449"),
    "national_id.in_epic": ("voter id {WKH1186253}", "voter id WKH1186259"),
    "national_id.in_pan": ("PAN {ACUPA7085R}", "PAN ACUXA7085R"),
    "national_id.jp_my_number": ("マイナンバー：{007726936751}", "マイナンバー：007726936759"),
    "national_id.ke_pin": ("KRA PIN {A004416331M}", "order A004416331M"),
    "national_id.kr_rrn": ("주민번호 {650608-1654977}", "주민번호 650608-1654979"),
    "national_id.kz_iin": ("ИИН {880101300123}", "order 880101300123"),
    "national_id.lk_nic": ("NIC {853400937V}", "order 853400937V"),
    "national_id.mx_curp": ("CURP {BOXW310820HNERXN09}", "CURP BOXW310820HNERXN08"),
    "national_id.mx_rfc": ("mi RFC es {GOMC80031257A}", "mi RFC es GOMC80039257A"),
    "national_id.my_nric": ("MyKad {770305-02-1234}", "MyKad 771305-02-1234"),
    "national_id.ng_nin": ("NIN {12345678901}", "order 12345678901"),
    "national_id.nz_ird": ("IRD {49-091-850}", "IRD 49-091-859"),
    "national_id.ph_sss": ("SSS {34-1234567-8}", "order 34-1234567-8"),
    "national_id.pk_cnic": ("CNIC: {45845-3137265-6}", "CNIC: 45845-3137265-0"),
    "national_id.sa_id": ("iqama {1010101010}", "iqama 1010101019"),
    "national_id.sg_nric": ("NRIC: {T3992056A}", "NRIC: T3992059A"),
    "national_id.th_pin": ("Thai ID: {2891877187231}", "Thai ID: 2891877187239"),
    "national_id.tw_id": ("{A123456789}", "A123456788"),
    "national_id.us_driver": ("driver's license {D1234567}", "order D1234567"),
    "national_id.us_itin": ("ITIN {912-90-3456}", "ITIN 912-93-3456"),
    "national_id.us_mbi": ("{1EG4-TE5-MK73}", "0EG4-TE5-MK73"),
    "national_id.uy_cedula": ("cédula {1.234.567-2}", "cédula 1.234.567-9"),
    "national_id.ve_cedula": ("cédula {V-12.345.678}", "order V-12.345.678"),
    "national_id.vn_cccd": ("CCCD {001099012345}", "order 001099012345"),
    "national_id.za_id": ("SA ID {5102035480085}", "SA ID 5102035480089"),
    "ip_address.v4": ("({185.219.1.206})", "(185.219.1.296)"),
    "ip_address.v6": ("host {2001:db8::8a2e:370:7334}: no route", "host 2001:db8::8a2e::7334"),
    "api_key.vendor": ("{AKIAIOSFODNN7EXAMPLE}", "AKIAIOSFODNN7EXAMPL"),
    "api_key.assigned": ("pwd={Xk29!plo};", "pwd=;"),
    "api_key.url_password": ("redis://:{p4ssw0rd}@cache:6379/0", "redis://cache:6379/0"),
    "jwt": ("{eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.}", "eyJhbGciOiJub25lIn9.eyJzdWIiOiIxIn0."),
    "private_key": (
        "{-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5C\n-----END EC PRIVATE KEY-----}",
        "-----BEGIN EC PUBLIC KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5C\n-----END EC PUBLIC KEY-----",
    ),
}


def found(recogniser: Recogniser, text: str) -> list[str]:
    """What this recogniser alone finds."""
    seen = normalise(text)
    spans = [span for found in Scanner([recogniser]).find(seen.text, 0, {}, Budget()) for span in found.spans]
    return [text[slice(*seen.span(*span))] for span in spans]


@pytest.mark.parametrize("recogniser", RECOGNISERS, ids=lambda recogniser: recogniser.name)
def test_the_right_is_found_and_the_wrong_is_not(recogniser: Recogniser) -> None:
    marked, wrong = EXAMPLES[recogniser.name]
    before, _, rest = marked.partition("{")
    number, _, after = rest.rpartition("}")
    assert found(recogniser, before + number + after) == [number]
    assert found(recogniser, wrong) == []


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        ("dial 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 now", ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"]),
        # The check digit is right, but cards with 12 digits are only believed behind a word for cards.
        ("total of 735201984466 rows", []),
    ],
)
def test_a_card_is_told_by_its_groups_and_its_length(text: str, cards: list[str]) -> None:
    assert found(CARD, text) == cards
