"""Words that name a secret, in many languages, and what may stand between such a word and its value."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from headrace.policy.text.normalisation import normalise
from headrace.policy.text.patterns import compiled

LEARNED = Path(str(files("headrace.policy") / "data/secret_words.txt"))
"""Words from translations: a sort and a word, normalised, in a line. ``supply_chain.secret_words`` writes it."""


def _learned(sort: str) -> str:
    """Return the words of a sort as alternatives of an expression, with the sign before them."""
    rows = (line.split("\t") for line in LEARNED.read_text(encoding="utf-8").splitlines())
    words = (re.escape(word).replace("\\ ", " ") for each, word in rows if each == sort)
    return "".join(rf"|\b{word}" if word[0].isascii() else f"|{word}" for word in words)


# Words for a key and words for a password, normalised: the sign for a long Japanese vowel becomes a dash.
KEYS = normalise(
    r"api[ _\-]?(?:key|token|secret)s?|apikey|secret[ _\-]?(?:access[ _\-]?)?key(?:[_\-]?base)?|client[ _\-]?secret"
    r"|(?:access|auth|app|application|account|encryption|signing|master|shared|service|deploy|license|webhook|private)"
    r"(?:[ _\-]?access)?[ _\-]?(?:key|token|secret)|sharedaccess(?:key|signature)"
    r"|(?:subscription|storage|write|admin|root|server|consumer|bot|personal|license|functions?|session|bearer|hmac|jwt)"
    r"[ _\-]?(?:key|token|secret)"
    r"|credentials?|creds|secrets?|tokens?|authorization|bearer|signing[ _\-]?(?:key|secret)"
    r"|(?:2fa|totp|otp|mfa)[ _\-]?(?:secret|seed|key)"
    r"|setup key"
    r"|(?:backup|recovery|activation|access|invite|pairing|auth|verification) codes?|licen[cs]e[ _\-]?key"
    r"|(?:hash|password|auth|secure_auth|logged_in|nonce|cookie)[ _\-]?(?:salt|pepper)"
    r"|phpsessid|jsessionid|session_?id|connect\.sid"
    r"|(?:api|zugangs|zugriffs|geheim)[ \-_]?schlüssel|geheimnis|clé (?:d'|secrète )?api|clave (?:de )?api"
    r"|chave (?:de )?api|chiave api|klucz api|jeton|api-ключ|ключ api|секрет|токен"
    r"|密钥|密鑰|秘钥|令牌|トークン|アクセスキー|シークレット|토큰"
).text
PASSWORDS = normalise(
    r"passwor[dt]s?|passwo?r?d|passwrd|pas+word|pass[ _\-]?phrase|passcode|pass[ \-]word|pwd|pswd?|\bpw|\bp/w"
    r"|requirepass|masterauth|identified by"
    r"|(?:wpa\d?|wep|wi-?fi|wlan|network|netzwerk|sicherheits)[ _\-]?(?:key|schlüssel)|\bclave"
    r"|(?:code|clé|klucz|kod) (?:du |do )?wi-?fi|wi-?fi[ \-]?(?:code|kod)|rootpw|snmp-server community"
    r"|convertto-securestring|contraseña|contrasenya"
    r"|clave de acceso|palabra clave|mots? de passe|\bmdp\b|\bm\.d\.p\.?|code d'accès|kennwort|zugangscode|senhas?"
    r"|parola d'ordine|parola di accesso|pasahitza|cyfrinair|pasfhocal|nenosiri|wagwoord|tunnussana|zaporka|šifra"
    r"|palavra-passe|hasł(?:o|a|em)|wachtwoord|paswoord|hesl(?:o|em)|lösenord(?:et)?|passord(?:et)?|kodeord(?:et)?"
    r"|adgangskoden?|salasana(?:ni|si)?|jelsz(?:ó|avam?)|parol[aăėeāni]{1,2}|\bparol\b|parool"
    r"|slaptažodis|lozink[ae]|geslo|lykilorð"
    r"|fjalëkalimi?|şifre(?:m|si|niz)?|mật khẩu|kata (?:sandi|laluan)|парол[ьяю]|паролем|лозинка"
    r"|κωδικ(?:ός|ό|οί)|סיסמ(?:ה|א|ת)|كلمة (?:المرور|السر|مرور|سر)|الرقم السري|رمز (?:عبور|المرور)|گذرواژه"
    r"|پسورد|باسورد|پاس ?ورڈ"
    r"|पासवर्ड|পাসওয়ার্ড|கடவுச்சொல்|పాస్‌వర్డ్|รหัสผ่าน|პაროლი|գաղտնաբառ|құпия ?сөз|пасворд|(?:\b|_)шифра"
    r"|密码|密碼|口令|パスワード|パスフレーズ|暗証番号|비밀번호|암호|비번|패스워드|合言葉"
).text
# Short for a password only where a sign follows: db_pass=.
SHORT = (
    r"(?:(?:\b|_|db|user|usr|root|admin|mail|smtp|ftp|store|key|sudo|proxy|client)pass"
    r"|(?:\b|_|login|admin|root|user|db)pw|(?:\b|_)(?:psk|pin|pswd|ww|lösen)|(?-i:[a-z]Pass))(?:\b|_|\d)"
)
# What may name a key if the value looks drawn: maps_key, an "auth" of a program's settings, a signature in a URL; and
# "key", "secret" and "token" in other languages.
LOOSE = normalise(
    r"(?:(?:_|\b)key|(?-i:[a-z]Key)|\b(?:erlang|session|magic)[ _]?cookie|(?:\b|_)auth|(?:\b|_)pat\b|\bappid|[?&]code"
    r"|\bsignature|\bsig|\bhmac|\bcookie"
    r"|schlüssel|\bclé|\bchave|\bchiave|\bcheie|\bclau\b|\bklíč|\bkľúč|\bključ|\bkulcs|\bklucz|nyckel|nøkkel|nøgle|sleutel"
    r"|avain|anahtar|\braktas|\batslēg|\bvõti|\bkhóa|\bkunci|\bkalit|\baçar|κλειδί|ключ|кључ|кілт|түлхүүр|ачкыч|مفتاح|کلید"
    r"|מפתח|กุญแจ|გასაღები|բանալի|कुंजी|চাবি|キー|鍵|열쇠|키|金鑰|金钥"
    r"|hemlig|hemmelig|geheim|\bsekret|\bsegret|\bsegred|\btajn|\btitkos|\bgizli|\bsala(?:inen|isuus|dus)|noslēpums"
    r"|paslapt"
    r"|\bbí mật|\brahasia|\bsirri|\bcyfrinach|μυστικ|тайн|таен|тајн|таємн|нууц|жашыруун|құпия|سری|محرمانه|סוד"
    r"|ความลับ|საიდუმლო"
    r"|գաղտնի|गुप्त|গোপন|ரகசிய|రహస్య|비밀|秘密|機密"
    r"|žeton|tokin|\btooken|маркер|توکن|توكن|אסימון|טוקן|โทเค็น|โทเคน|ტოკენ|टोकन|টোকেন|டோக்கன்|権杖|權杖|令牌"
    r"|\bapi[ \-][^\W\d_]{3,14}|[^\W\d_]{3,14}[ \-]api)"
).text.replace("[^\\W\\d_]", "\\pL")
WORD = (
    rf"(?i)(?P<key>{KEYS}{_learned('key')})|(?P<password>{PASSWORDS}{_learned('password')})"
    rf"|(?P<short>{SHORT})|(?P<loose>{LOOSE})"
)
_ANY: Any = compiled(WORD)
_BY_HAND: Any = compiled(rf"(?i){KEYS}|{PASSWORDS}")
_LOOSELY: Any = compiled(rf"(?i){LOOSE}")


def is_known(word: str) -> bool:
    """True if a label has a word for a secret that is listed here and not learned."""
    return _BY_HAND.search(word) is not None


def is_loose(word: str) -> bool:
    """True if a label is one word that may mean something else too."""
    return word.isalpha() and _LOOSELY.search(word) is not None


def names_secret(value: str) -> bool:
    """True if a part of a value is a word for a secret: ``db.token``; in keycloak and author are none."""
    return any(
        found.lastgroup != "loose" or not value[found.end() : found.end() + 1].islower()
        for found in _ANY.finditer(value)
    )


NO_SECRET_KEY = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:public|publishable|pub|cache|idempotency|primary|foreign|partition|sort|row|object|dedup|shard|index|hash|lookup"
    r"|host|continuation|page|next|sync|cursor|pagination|special|eos|bos|pad|stop|sep|entity|record|item|doc(?:ument)?|group"
    r"|asset|image|blob|file|folder|map|dict|composite|candidate|routing|message|translation|i18n|menu|locale|hot|short|field"
    r"|column|label|tag|option|config|param(?:eter)?|json|header|search|filter|order|data|bucket|s3|etag|context|state|event"
    r"|job|task|trace|metric|unique|block|node|sitemap|site|websocket)[ _\-]?$|\bdid:$"
)
QUALIFIER = re.compile(r"([A-Za-z]{2,})([ _\-]?)$")
"""The word before "key", and what joins the two."""
NO_QUALIFIER = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these my our your his her their its new old same other each every any no and or of for "
        "with by use using used is as in on to from which what one first last next",
    )
)

# Of the same name: DB_PASSWORD_2=, tokenValue:.
_REST = (
    r"(?:s|[_\-]?(?:base|prod|production|dev|staging|test|live|main|primary|secondary|old|new|default|b64|value|v?\d))?"
)
_CLOSED = r"[\\\"'`*_\])}»”」』】#]{0,6}"
_OPENED = r"[*\[({]{0,2}\s?\\{0,3}(?:\"|'{1,3}|`{1,2}|[“„「『«]\s?|[\[({<])?"
_CALL = r"(?:(?:new )?[A-Za-z_][\w.:]{0,31}\(\s?){0,2}"
_VALUE_FIELD = r"[\\\"']{0,2}(?:value|content|default|string|text|data)[\\\"']{0,2}\s?[:=]\s?"
# Signs that set a value to a name, with what programs and files write besides.
SIGNS = (
    rf"{_REST}{_CLOSED}(?:"
    r"\s?:\s?\[\s?\{[^{}\n]{0,40}[\"']value[\"']\s?:\s?|"
    r"\s?:\s?&?[A-Za-z][\w\[\]<>|.&]{0,24}(?:\s=\s?|=(?=[\"'`]))"
    # A table, whose columns may be wide.
    r"|[ \t]{0,40}\|[ \t]{0,3}"
    rf"|\s{{0,12}}(?:=>|->|→|<-|:=|\?=|={{1,3}}|::?|\|{{1,2}})(?:(?<=:)\s{{0,12}}{_VALUE_FIELD}|(?<=:)\s{{1,12}}|\s{{0,3}})"
    rf"|,?\s{{0,12}}{_VALUE_FIELD}"
    r"|\s--(?:value|secret-string|body|data)[ =]"
    r"|,\s{0,2}(?=[\"'`])"
    r"|(?<=[\"'])(?:\s{1,3}[\w:\-]{1,24}=[\"'][^\"'\n]{0,24}[\"']){0,3}\s{1,3}(?:value|content)="
    r"|(?:\s{0,12}</?[\w:.\-]{1,24}[^<>\n]{0,40}>){1,3}\s{0,12}"
    r"|>(?:\s{0,12}</?[\w:.\-]{1,24}[^<>\n]{0,40}>){1,3}\s{0,12}|>?<!\[CDATA\[|>"
    r"|(?:\s{1,3}[\w:\-]{1,24}=[\"'][^\"'<>\n]{0,24}[\"']){1,3}\s?>"
    r"|\s?\{\s{1,8}(?:\w{1,12}\s{1,4}=\s[\w\"]{1,24}\s{1,8}){0,3}default\s{1,4}=\s"
    r"|\s?\{[^{}\n]{0,30}\}\s?=\s?|,(?=\w)(?![\w.\-]{1,40}[=(,)])|;(?=[\w\"'])(?![\w.\-]{1,40}=)|\s-\s|(?:\s\w{1,16})?\s<<<\s|\s{1,3}(?=[`“„«「\"'\\])|(?=\(\s?[\"'`])"
    rf"){_CALL}"
)
# Words that mean "is".
IS_WORDS = normalise(
    r"(?:,?\s{1,3}c'est|'s|\s{1,3}(?:from(?: \S{4,40} to)?|is|was|are|should be|must be|will be"
    r"|has been|became|be"
    r"|wurde auf|wird|bleibt|sera|será|sarà|będzie|это|стал|будет"
    r"|est|ist|lautet|es|è|é|e|är|er|jest|je|on|este|là|adalah|to|with|は))"
    r"(?: now| still| again| just| currently| set to| changed to| reset to| jetzt| nun| ahora| maintenant| agora"
    r"| adesso"
    r"| nu| teraz| теперь| сейчас)?"
    r"(?:\s?:)?\s{1,3}|\?\s{1,3}(?:\w{1,16}:\s)?"
    r"|\s?(?:[都均][是为]|分别[是为]|设置成?为)\s?:?\s?|\s?(?:改成了?|改为了?|改為了?|变成|设为|设置为|换成了?|(?:是|为|為)\s?:)\s?"
    r"|\s{1,3}(?:geändert in|gewijzigd in|cambió a|changed to|reset to)\s"
    r"|\s(?:είναι|היא|הוא|هي|هو|है)\s|คือ\s?|は\s?|是|为|為|[이은는]\s"
).text
# The purpose of a password or key: "the password of the router is", "api key (staging):".
FOR = r"(?:(?:\s[^\s:=<>\"`,;|(){}0-9]{1,24}){1,4}|\s\([^)\n]{1,40}\))"

# The rest of a word in a script whose words are not divided, and a short ending: รหัสผ่านใหม่, tokena, secreto.
_ENDING = r"(?:[^\x00-\xbf\s\u3000-\u303f\uff00-\uff20]{1,16}|[aeiouy][a-z]?(?![a-z]))"
_USER = r"[\w.@\-+\\]{1,40}"
CALL = re.compile(
    r"(?i)(?:client|auth|login|token|key|secret|sign|verify|encode|decode|connect|init|load|api|configure)\w{0,16}"
    r"\((?:[^()\"'`\n]{1,40},\s?)?[\"'`]$"
    r"|\b(?:algolia|twilio|plivo|vonage|nexmo|mailjet|pusher|cloudinary|opentok|agora|stripe|sendgrid|mailgun|sentry|razorpay"
    r"|amplitude|mixpanel|segment|intercom|zendesk|trello|walletprovider|openai|anthropic|cohere|replicate)[\w.:]{0,24}"
    r"\((?:[\"'`]?[\w.\-:]{1,48}[\"'`]?,\s?){0,2}[\"'`](?:0x)?$"
    r"|\b(?:login|authtoken|add-authtoken)(?: --?[a-z\-]{1,24})* [\"']?$"
)
"""A call or a command with a key as its argument."""
PAIR_IN_CALL = re.compile(
    rf"(?i)(?:auth|log[io]n|connect|connection|credentials?|basic|user|pdo|wifi\.begin)\w{{0,16}}\s?=?\s?[\s(](?:[^()\n]{{0,60}},\s?)?"
    rf"[\"'`]{_USER}[\"'`],\s?[\"'`]$"
    r"|\bjwt\.(?:sign|verify|encode|decode)\([^()\"'`\n]{1,60},\s?[\"'`]$"
)
"""A call with a user and then a password, or with a text and then its signing key."""
BARE_PAIR = re.compile(rf"(?:^|[\s=:\[{{,])\([\"'`]{_USER}[\"'`],\s?[\"'`]$")
"""A pair in brackets, which may be a user and a password."""
PAIR = re.compile(
    r"(?i)\b(?:credentials?|creds|log ?in|sign ?in|user|username|account|accès|acceso|accesso"
    r"|zugang\w{0,6}|anmeld\w{1,6}"
    r"|use|with|using|as|mit|avec|con)\b(?: (?:are|is|sind|with|as|mit))?(?:\s?[:=]\s{0,3}|\s{1,3}|(?=[\"'`(]))[\"'`(]?"
    rf"{_USER}[\"'`]?\s?(?://?|\||,|:|\band\b|\bund\b|\bet\b)\s?[\"'`]?$"
    r"|\b(?:admin|administrator|root|sa|postgres|guest|test|demo|user)[\"'`*]{0,2}\s?[/:|]\s?[\"'`*]{0,2}$"
)
"""A user and then a password, in a sentence or a command."""
COMMAND_PAIR = re.compile(
    r"(?i)\bnet use \S{1,12} \S{1,40} $"
    r"|\b(?:add_?user|user_?add|create_?user|net user|htpasswd|auth|authenticate|log[io]n)"
    r"(?: -\w{1,4})*(?: [^\s=:]{1,32}){1,2} [\"']?$"
    r"|\busername \S{1,32} (?:privilege \d+ )?(?:secret|password)(?: \d)? $"
)
"""A command with a user and then a password."""
USERS = re.compile(r"(?i)(?:(?:admin|administrator|root|guest|demo)[:/]|[\w.\-*]+:(?:\d{2,5}|\*):[\w\-*]+:[\w\-*]+:)")
"""A user and then a password, without a space: ``admin:X``, a line of a file for psql."""
_SET = re.compile(f"(?i){SIGNS}{_OPENED}")
_SAID = re.compile(f"(?i){_CLOSED}(?:{IS_WORDS}|\\s?\\n\\s?){_OPENED}")
_FAR = re.compile(f"(?i)(?:{_ENDING}{FOR}?|{FOR}){SIGNS}{_OPENED}")
_TOLD = re.compile(f"(?i){FOR}{IS_WORDS}{_OPENED}")
# At the begin of a later line, also behind the time and the name of the next message in a chat.
_NEXT = re.compile(
    r"[^\n]{0,40}\n{1,3}[ \t>*#\-]{0,8}"
    r"(?:\[[^\]\n]{1,20}\]\s?)?(?:\d\d?:\d\d(?::\d\d)?\s)?"
    r"(?:[\w.@()<>]{1,16}(?: [\w.()]{1,12})?:\s{1,2})?(?:[Ii]t'?s |[Ii]t is |-> )?"
    f"{_OPENED}"
)
_SPACE = re.compile(rf"(?i)s?(?:\.\w{{1,24}})?[ \t]{{1,40}}{_OPENED}")
# The same separator stands between the two values.
BOTH = re.compile(r"(?i)(?:user(?:name)?|login|id|account|benutzer\w*)\s?([/:|&+])\s?$")
LINKS = (("set", _SET), ("said", _SAID), ("spaced", _SPACE), ("far", _FAR), ("told", _TOLD), ("next", _NEXT))
"""Expressions for what stands between a word and its value, the surest first."""
SCHEME = re.compile(r"(?i)[\\\"']{0,2}\s?[:=,]\s?[\\\"']{0,2}[A-Za-z\-]{2,20}[ =](?:token=)?[\"']?")
"""Behind ``Authorization``: the name of the scheme."""
COOKIE = re.compile(r"[\\\"']{0,2}\s?[:=,]\s?[\\\"']{0,2}(?:[\w.\-]{1,32}=[^;\s]{0,24};\s?){0,3}[\w.\-]{1,32}=")
"""Behind ``Cookie``: the name of the cookie, and others before it."""
FLAG = re.compile(
    r"(?:^|[\s\"'`(\[,])(?:--?|/)[a-z\-_.]{0,40}$|[A-Z]_$|\bconfig(?: set| add)? [\w./:\-]{0,40}$", re.IGNORECASE
)
