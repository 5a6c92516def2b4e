"""Numbers that states give to people, through python-stdnum's checks.

Some carry so much structure that they are known by themselves. Others are a few digits with one check digit, which
every tenth order number has too: they count only where the words before say what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from stdnum.ar import cuit
from stdnum.au import tfn
from stdnum.be import nn
from stdnum.bg import egn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ahv
from stdnum.cl import rut
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr as steuer_id
from stdnum.dk import cpr
from stdnum.ee import ik
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.gr import amka
from stdnum.hr import oib
from stdnum.ie import pps
from stdnum.il import idnr as teudat_zehut
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.lt import asmens
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.pt import cc, nif
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.th import pin
from stdnum.tr import tckimlik
from stdnum.us import itin
from stdnum.za import idnr as za_id

from policy.recognisers import Kind, Recogniser, Spans, Words, letters_and_digits

_NOT_PEOPLE = "order invoice part serial sku tracking version build ticket batch lot isbn ean imei vin phone tel fax"


class Proof(Enum):
    """What it takes to believe a number."""

    ITSELF = auto()
    # Written in groups, with the state's own signs between them; or announced.
    GROUPED = auto()
    ANNOUNCED = auto()


@dataclass(frozen=True, slots=True)
class _Check:
    """A check of one state's number."""

    is_valid: Callable[[str], bool]
    proof: Proof
    words: Words

    def __call__(self, candidate: str, before: str) -> Spans:
        """The whole candidate, or nothing."""
        if before[-1:] in {"-", ".", "/", "_", "#", "+"} and candidate[0].isdigit():
            return
        opinion = self.words.judge(before)
        is_grouped = not candidate.isalnum()
        believed = self.proof is Proof.ITSELF or (self.proof is Proof.GROUPED and is_grouped and opinion >= 0)
        if (believed or opinion > 0) and self.is_valid(candidate):
            yield 0, len(candidate)


def _nino(text: str) -> bool:
    """A British National Insurance number; HMRC's manual NIM39110 lists the prefixes that are not given out."""
    return letters_and_digits(text)[:2] not in {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"}


def _dni(text: str) -> bool:
    """A Spanish identity number, with or without the dots."""
    return dni.is_valid(text.replace(".", ""))


_NRIC_WEIGHTS = (2, 7, 6, 5, 4, 3, 2)
_NRIC_LETTERS = {"S": "JZIHGFEDCBA", "T": "GFEDCBAJZIH", "F": "XWUTRQPNMLK", "G": "RQPNMLKXWUT"}


def _nric(text: str) -> bool:
    """A Singapore identity number."""
    total = sum(weight * int(digit) for weight, digit in zip(_NRIC_WEIGHTS, text[1:8], strict=True))
    return _NRIC_LETTERS[text[0]][total % 11] == text[8]


def _id(name: str, pattern: str, is_valid: Callable[[str], bool], proof: Proof, words: str) -> Recogniser:
    check = _Check(is_valid, proof, Words(words + r" national\sid identity\s(?:number|card|no)", _NOT_PEOPLE))
    return Recogniser(f"national_id.{name}", Kind.NATIONAL_ID, 60, rf"\b{pattern}\b", check, same=letters_and_digits)


_ITSELF, _GROUPED, _ANNOUNCED = Proof.ITSELF, Proof.GROUPED, Proof.ANNOUNCED

NATIONAL_IDS = (
    _id(
        "gb_nino", r"(?i:[a-ceghj-prtw-z][a-ceghj-nprtw-z] ?\d\d ?\d\d ?\d\d ?[a-d])", _nino, _ITSELF, "nino insurance"
    ),
    _id("gb_nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs.is_valid, _ANNOUNCED, "nhs"),
    _id("us_itin", r"9\d\d[ -]?\d\d[ -]?\d{4}", itin.is_valid, _GROUPED, "itin taxpayer"),
    _id("ca_sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", sin.is_valid, _ANNOUNCED, r"sin\b social\sinsurance nas\b assurance"),
    _id("es_dni", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-Za-z]", _dni, _ITSELF, "dni nif"),
    _id("es_nie", r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", nie.is_valid, _ITSELF, "nie"),
    _id("fr_nir", r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", nir.is_valid, _ITSELF, r"nir sécu sécurité"),
    _id(
        "it_codice_fiscale",
        r"(?i:[a-z]{6}[0-9l-v]{2}[a-z][0-9l-v]{2}[a-z][0-9l-v]{3}[a-z])",
        codicefiscale.is_valid,
        _ITSELF,
        "codice c\\.f\\.",
    ),
    _id(
        "de_steuer_id",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        steuer_id.is_valid,
        _ANNOUNCED,
        r"steuer identifikationsnummer idnr tin\b tax",
    ),
    _id(
        "nl_bsn",
        r"\d{4}[. ]?\d{2}[. ]?\d{3}|\d{3}[. ]?\d{3}[. ]?\d{3}",
        bsn.is_valid,
        _ANNOUNCED,
        "bsn burgerservicenummer sofinummer",
    ),
    _id(
        "be_rijksregister",
        r"\d\d\.?\d\d\.?\d\d[- ]?\d{3}[. ]?\d\d",
        nn.is_valid,
        _GROUPED,
        "rijksregister national\\snumber registre insz niss numéro",
    ),
    _id("pl_pesel", r"\d{11}", pesel.is_valid, _ANNOUNCED, "pesel"),
    _id("se_personnummer", r"(?:\d\d)?\d{6}[-+]?\d{4}", personnummer.is_valid, _GROUPED, "personnummer personal\\s"),
    _id("fi_hetu", r"\d{6}[-+A-FYXWVU]\d{3}[0-9A-Y]", hetu.is_valid, _ITSELF, "hetu henkilötunnus"),
    _id("dk_cpr", r"\d{6}[- ]?\d{4}", cpr.is_valid, _ANNOUNCED, "cpr personnummer"),
    _id(
        "no_fodselsnummer",
        r"\d{6} ?\d{5}",
        fodselsnummer.is_valid,
        _ANNOUNCED,
        "fødselsnummer fodselsnummer personnummer fnr",
    ),
    _id("pt_nif", r"\d{3} ?\d{3} ?\d{3}", nif.is_valid, _ANNOUNCED, r"nif contribuinte"),
    _id("pt_cc", r"\d{8}[ -]?\d ?[A-Z0-9]{2}\d", cc.is_valid, _ANNOUNCED, r"cartão\sde\scidadão cc\b"),
    _id("br_cpf", r"\d{3}\.?\d{3}\.?\d{3}[- ]?\d\d", cpf.is_valid, _GROUPED, "cpf"),
    _id("mx_curp", r"(?i:[a-z]{4}\d{6}[a-z]{6}[0-9a-z]\d)", curp.is_valid, _ITSELF, "curp"),
    _id("ar_cuil", r"\d\d[- ]?\d{8}[- ]?\d", cuit.is_valid, _GROUPED, "cuil cuit"),
    _id("cl_rut", r"\d{1,2}\.?\d{3}\.?\d{3}-[\dkK]", rut.is_valid, _GROUPED, r"rut\b run\b"),
    _id("in_aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", aadhaar.is_valid, _ANNOUNCED, "aadhaar aadhar uid आधार"),
    _id("in_pan", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", pan.is_valid, _ITSELF, "pan"),
    _id("cn_ric", r"\d{17}[\dXx]", ric.is_valid, _ITSELF, "身份证"),
    _id("kr_rrn", r"\d{6}-?\d{7}", rrn.is_valid, _GROUPED, "rrn 주민등록번호"),
    _id("sg_nric", r"[STFG]\d{7}[A-Z]", _nric, _ITSELF, "nric fin"),
    _id("au_tfn", r"\d{3}[ -]?\d{3}[ -]?\d{2,3}", tfn.is_valid, _ANNOUNCED, r"tfn tax\sfile"),
    _id("za_id", r"\d{6} ?\d{4} ?\d{3}", za_id.is_valid, _ANNOUNCED, r"id\snumber id\sno sa\sid rsa"),
    _id("il_id", r"\d{9}", teudat_zehut.is_valid, _ANNOUNCED, r"teudat תעודת id\snumber"),
    _id("tr_tckimlik", r"\d{11}", tckimlik.is_valid, _ANNOUNCED, r"kimlik tckn t\.c\. tc\b"),
    _id("ro_cnp", r"\d{13}", cnp.is_valid, _ANNOUNCED, "cnp"),
    _id("bg_egn", r"\d{10}", egn.is_valid, _ANNOUNCED, "егн egn"),
    _id("cz_rodne_cislo", r"\d{6}/?\d{3,4}", rc.is_valid, _GROUPED, r"rodné rodne rč"),
    _id("hr_oib", r"\d{11}", oib.is_valid, _ANNOUNCED, "oib"),
    _id("ch_ahv", r"756\.?\d{4}\.?\d{4}\.?\d\d", ahv.is_valid, _ITSELF, "ahv avs"),
    _id("ee_isikukood", r"\d{11}", ik.is_valid, _ANNOUNCED, "isikukood"),
    _id("lt_asmens_kodas", r"\d{11}", asmens.is_valid, _ANNOUNCED, "asmens"),
    _id("gr_amka", r"\d{11}", amka.is_valid, _ANNOUNCED, "amka αμκα"),
    _id("ie_pps", r"\d{7}[A-W][A-IW]?", pps.is_valid, _ITSELF, "pps"),
    _id("th_pin", r"\d-?\d{4}-?\d{5}-?\d\d-?\d", pin.is_valid, _GROUPED, "เลข thai"),
)
