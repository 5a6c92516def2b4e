"""Numbers that the states of Europe give to people: see ``national_ids``."""

from headrace.policy.recognisers.national_ids import Proof, anything, national_id, of_stdnum
from headrace.policy.recognisers.recogniser import Recogniser, letters_and_digits

_ITSELF, _GROUPED, _ANNOUNCED = Proof.ITSELF, Proof.GROUPED, Proof.ANNOUNCED


def _nino(text: str) -> bool:
    """A British National Insurance number; HMRC's manual NIM39110 lists the prefixes that are not given out."""
    return letters_and_digits(text)[:2] not in {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"}


def _dni(text: str) -> bool:
    """A Spanish identity number, with or without the dots."""
    return _SPANISH_DNI(text.replace(".", ""))


_SPANISH_DNI = of_stdnum("es", "dni")


def _snils(text: str) -> bool:
    """A Russian pension number: the last two digits are the others' weighted sum."""
    digits = letters_and_digits(text)
    total = sum(int(digit) * weight for digit, weight in zip(digits[:9], range(9, 0, -1), strict=True))
    return total % 101 % 100 == int(digits[9:])


def _taj(text: str) -> bool:
    """A Hungarian health number: weights three and seven in turn."""
    digits = [int(digit) for digit in letters_and_digits(text)]
    return sum(digit * (3, 7)[place % 2] for place, digit in enumerate(digits[:8])) % 10 == digits[8]


def _has_digits(text: str) -> bool:
    return sum(map(str.isdigit, text)) >= 3


_PASSPORT = (
    "passport reisepass passeport pasaporte passaporto passaporte paspoort paszport pasaport pass-nr pass\\snr"
    " паспорт 护照 護照 パスポート 여권"
)
_OF_GERMANY = r"[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8}"

EUROPE: tuple[Recogniser, ...] = (
    national_id("passport", rf"[A-Z]{{0,3}}\d{{6,9}}[A-Z]?|{_OF_GERMANY}", _has_digits, _ANNOUNCED, _PASSPORT),
    national_id(
        "at_vnr",
        r"\d{4} ?\d{6}",
        of_stdnum("at", "vnr"),
        _ANNOUNCED,
        r"svnr sozialversicherung sv-n versicherungsnummer vsnr vnr\b",
    ),
    national_id(
        "be_rijksregister",
        r"\d\d\.?\d\d\.?\d\d[- ]?\d{3}[. ]?\d\d",
        of_stdnum("be", "nn"),
        _GROUPED,
        "rijksregister national\\snumber registre insz niss numéro",
    ),
    national_id("bg_egn", r"\d{10}", of_stdnum("bg", "egn"), _ANNOUNCED, "егн egn"),
    national_id("ch_ahv", r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d\d", of_stdnum("ch", "ssn"), _ITSELF, "ahv avs"),
    national_id("cz_rodne_cislo", r"\d{6}/?\d{3,4}", of_stdnum("cz", "rc"), _GROUPED, r"rodné rodne rč r\.\s?č"),
    national_id("de_ausweis", _OF_GERMANY, _has_digits, _ANNOUNCED, "personalausweis ausweis"),
    national_id(
        "de_rentenversicherung",
        r"\d{2} ?\d{6} ?[A-Z] ?\d{3}",
        anything,
        _ANNOUNCED,
        "rentenversicherung sozialversicherung rvnr svnr sv-nummer",
    ),
    national_id(
        "de_steuer_id",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        of_stdnum("de", "idnr"),
        _ANNOUNCED,
        r"steuer identifikationsnummer idnr tin\b tax",
    ),
    national_id("dk_cpr", r"\d{6}[- ]?\d{4}", of_stdnum("dk", "cpr"), _ANNOUNCED, "cpr personnummer"),
    national_id("ee_isikukood", r"\d{11}", of_stdnum("ee", "ik"), _ANNOUNCED, "isikukood"),
    national_id("es_dni", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-Za-z]", _dni, _ITSELF, "dni nif"),
    national_id("es_nie", r"[XYZxyz][ -]?\d{7}[ -]?[A-Za-z]", of_stdnum("es", "nie"), _ITSELF, "nie"),
    national_id("fi_hetu", r"\d{6}[-+A-FYXWVU]\d{3}[0-9A-Y]", of_stdnum("fi", "hetu"), _ITSELF, "hetu henkilötunnus"),
    national_id(
        "fr_nir",
        r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d",
        of_stdnum("fr", "nir"),
        _ITSELF,
        r"nir sécu sécurité",
    ),
    national_id(
        "fr_spi",
        r"[0-3]\d ?\d{2} ?\d{3} ?\d{3} ?\d{3}",
        of_stdnum("fr", "nif"),
        _ANNOUNCED,
        r"fiscal spi\b",
    ),
    national_id(
        "gb_driver", r"[A-Z]{1,5}9{0,4}\d{6}[A-Z9]{2}\d[A-Z]{2}", anything, _ANNOUNCED, "driving driver licence"
    ),
    national_id("gb_nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", of_stdnum("gb", "nhs"), _ANNOUNCED, "nhs"),
    national_id(
        "gb_nino",
        r"(?i:[a-ceghj-pr-tw-z][a-ceghj-npr-tw-z] ?\d\d ?\d\d ?\d\d ?[a-d])",
        _nino,
        _ITSELF,
        "nino insurance",
    ),
    national_id("gb_utr", r"\d{5} ?\d{5}", of_stdnum("gb", "utr"), _ANNOUNCED, r"utr\b taxpayer"),
    national_id("gr_amka", r"\d{11}", of_stdnum("gr", "amka"), _ANNOUNCED, "amka αμκα"),
    national_id("hr_oib", r"\d{11}", of_stdnum("hr", "oib"), _ANNOUNCED, "oib"),
    national_id("hu_taj", r"\d{3}[ -]?\d{3}[ -]?\d{3}", _taj, _ANNOUNCED, r"taj\b"),
    national_id("ie_pps", r"\d{7}[A-W][A-IW]?", of_stdnum("ie", "pps"), _ITSELF, "pps"),
    national_id("is_kennitala", r"\d{6}-?\d{4}", of_stdnum("is", "kennitala"), _ANNOUNCED, r"kennital kt\."),
    national_id(
        "it_codice_fiscale",
        r"(?i:[a-z]{3} ?[a-z]{3} ?[0-9l-v]{2}[a-z][0-9l-v]{2} ?[a-z][0-9l-v]{3}[a-z])",
        of_stdnum("it", "codicefiscale"),
        _ITSELF,
        "codice c\\.f\\.",
    ),
    national_id("lt_asmens_kodas", r"\d{11}", of_stdnum("lt", "asmens"), _ANNOUNCED, r"asmens a\.\s?k\."),
    national_id("lv_personas_kods", r"\d{6}-?\d{5}", of_stdnum("lv", "pvn"), _ANNOUNCED, r"personas p\.\s?k\."),
    national_id(
        "nl_bsn",
        r"\d{4}[. ]?\d{2}[. ]?\d{3}|\d{3}[. ]?\d{3}[. ]?\d{3}",
        of_stdnum("nl", "bsn"),
        _ANNOUNCED,
        "bsn burgerservicenummer sofinummer",
    ),
    national_id(
        "no_fodselsnummer",
        r"\d{6} ?\d{5}",
        of_stdnum("no", "fodselsnummer"),
        _ANNOUNCED,
        "fødselsnummer fodselsnummer personnummer fnr",
    ),
    national_id("pl_dowod", r"[A-Z]{3} ?\d{6}", anything, _ANNOUNCED, "dowód dowod dowodu"),
    national_id("pl_pesel", r"\d{11}", of_stdnum("pl", "pesel"), _ANNOUNCED, "pesel"),
    national_id("pt_cc", r"\d{8}[ -]?\d ?[A-Z0-9]{2}\d", of_stdnum("pt", "cc"), _ANNOUNCED, r"cidadão cc\b"),
    national_id("pt_nif", r"\d{3} ?\d{3} ?\d{3}", of_stdnum("pt", "nif"), _ANNOUNCED, "nif contribuinte"),
    national_id("ro_cnp", r"\d{13}", of_stdnum("ro", "cnp"), _ANNOUNCED, r"cnp numeric\spersonal"),
    national_id("ru_inn", r"\d{12}", of_stdnum("ru", "inn"), _ANNOUNCED, r"инн inn\b"),
    national_id("ru_snils", r"\d{3}-?\d{3}-?\d{3}[ -]?\d\d", _snils, _GROUPED, "снилс snils"),
    national_id(
        "se_personnummer",
        r"(?:\d\d)?\d{6}[-+]?\d{4}",
        of_stdnum("se", "personnummer"),
        _GROUPED,
        "personnummer personnr pnr personal\\s",
    ),
    national_id("tr_tckimlik", r"\d{11}", of_stdnum("tr", "tckimlik"), _ANNOUNCED, r"kimlik tckn t\.c\. tc\b"),
    national_id("ua_rnokpp", r"\d{10}", of_stdnum("ua", "rntrc"), _ANNOUNCED, "рнокпп іпн ідентифікаційн rnokpp"),
    national_id(
        "yu_jmbg", r"\d{13}", of_stdnum("si", "emso"), _ANNOUNCED, "jmbg emšo emso matični јмбг ембг матични embg"
    ),
)
