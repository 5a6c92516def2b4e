"""What stands before a secret: names of keys and passwords in many languages, and the signs and words behind them."""

import re

from policy.text.views import view

# What names a key, and what names a password; as texts are read (``view``: a long Japanese vowel reads as a dash).
KEYS = view(
    r"api[ _\-]?(?:key|token|secret)s?|apikey|secret[ _\-]?(?:access[ _\-]?)?key|client[ _\-]?secret"
    r"|(?:access|auth|app|application|account|encryption|signing|master|shared|service|deploy|license|webhook|private)"
    r"(?:[ _\-]?access)?[ _\-]?(?:key|token|secret)|sharedaccess(?:key|signature)"
    r"|(?:subscription|storage|write|admin|root|server|consumer|bot|personal|license)[ _\-]?(?:key|token)"
    r"|credentials?|secret|token"
    r"|phpsessid|jsessionid|sessionid|connect\.sid|session[ _\-]?(?:key|token)"
    r"|api[ _\-]?schlüssel|zugangsschlüssel|clé (?:d'|secrète )?api|clave (?:de )?api|chave (?:de )?api"
    r"|api-ключ|ключ api|密钥|密鑰|秘钥|令牌|トークン|アクセスキー|토큰"
).text
PASSWORDS = view(
    r"passwor[dt]s?|\bpw|identified by|convertto-securestring|passwd|passphrase|passcode|pwd|contraseña"
    r"|clave de acceso|mot de passe|code d'accès|kennwort|senha"
    r"|palavra-passe|hasł(?:o|a|em)|wachtwoord|paswoord|hesl(?:o|em)|lösenord(?:et)?|passord(?:et)?|kodeord(?:et)?"
    r"|adgangskoden?|salasana(?:ni|si)?|jelsz(?:ó|avam?)|parol[aăėe]|parool|slaptažodis|lozink[ae]|geslo|lykilorð"
    r"|fjalëkalimi?|şifre(?:m|si|niz)?|mật khẩu|kata (?:sandi|laluan)|парол[ьяю]|паролем|лозинка"
    r"|κωδικός|סיסמה|كلمة المرور|كلمة السر|رمز عبور|पासवर्ड|รหัสผ่าน|密码|密碼|口令|パスワード|パスフレーズ|비밀번호|암호"
).text
# Short for a password only where a sign follows: db_pass=.
SHORT = r"(?:(?:\b|_|db|user|usr|root|admin|mail|smtp|ftp|store|key|sudo|proxy|client)pass|(?:\b|_)(?:pw|psk))"
# What may name a key if the value looks drawn: maps_key, an "auth" of a program's settings, a signature in a URL.
LOOSE = r"(?:[_\-]key|\b(?:key|_?auth|sig))"
NO_SECRET_KEY = re.compile(
    r"(?i)(?:public|pub|cache|idempotency|primary|foreign|partition|sort|row|object|dedup|shard|index|hash"
    r"|lookup|host)[ _\-]?$"
)
VALUE = r"[^\s\"'`<>,;|(){}\[\]“”„«»「」『』【】、。，；]"
# Between a name and its value: signs, or the next field of a list of names;
SIGNS = (
    r"(?:[_\-]?(?:base|prod|production|dev|staging|test|live|main|primary|secondary|old|new|default|b64|v?\d))?"
    r"[\\\"'`*_\]]{0,4}(?:\s?:\s?&?[A-Za-z][\w\[\]<>|]{0,24}\s?=\s?"
    r"|\s{0,3}(?:=>|->|→|:=|\?=|==|=|:|\|{1,2})\s{0,3}|>(?:<!\[CDATA\[)?"
    r"|:?,?\s{0,12}[\"']?value[\"']?\s?[:=]\s?"
    r"|\s?\{\s{1,8}(?:\w{1,12}\s{1,4}=\s[\w\"]{1,24}\s{1,8}){0,3}default\s{1,4}=\s"
    r"|\s-\s|\s{1,2}[`“„«「\"']|\(\s?[\"'])[*_\[]{0,2}\s?"
)
# a word that says that it is so, or behind a password nothing but a space.
IS_WORDS = view(
    r"(?:,?\s{1,3}c'est|\s{1,3}(?:from|is|was|are|est|ist|lautet|es|è|é|e|är|er|jest|je|on|este|là|adalah|to|は))"
    r"(?: now| still| set to| changed to| jetzt| nun| ahora| maintenant| agora| adesso| nu| teraz)?(?:\s?:)?\s{1,3}"
    r"|\s(?:είναι|היא|הוא|هي|هو|है)\s|คือ\s?|は\s?|是|为|為|[이은는]\s"
).text
IS = f"(?:{SIGNS}|{IS_WORDS})"
OF_VALUE = rf"(?:\\{{0,3}}\"([^\s\"]+)|\\{{0,3}}'{{1,3}}([^\s']+)|(?:[`“„「]|«\s?)?({VALUE}+))"
# What a password or key is for: "the password of the router is", "api key (staging):".
FOR = r"(?:(?:\s[^\s:=<>\"`,;|(){}0-9]{1,24}){1,3}|\s\([^)\n]{1,40}\))"
# Signs of a list of arguments: define('DB_PASSWORD', 'x').
NEXT = r"[\"'],\s{0,2}"
CALL = r"(?:client\((?:[\w.]{1,32},\s?)?|jwt\.(?:sign|verify|encode|decode)\(\w{1,32},\s?)[\"']"
# A user and a password, one behind the other.
PAIR = r"(?:auth\s?=\s?\(|(?:getconnection|mysqli_connect)\([^\s,()]{1,80},\s?)[\"'][^\"'\s]{1,64}[\"'],\s?"
