"""The phrases of the first classifier: OpenAI's category names, a weight, and an RE2 expression, case ignored.

One phrase of 0.5 or more flags a text. Phrases of a subcategory are in its category too. Slurs are not included: an
operator can add them to a deny list.
"""

_GROUP = (
    r"(?:immigrants|migrants|refugees|foreigners|muslims|jews|christians|hindus|women|men|gays|lesbians|blacks|whites"
    r"|asians|arabs|africans|mexicans|indians|gypsies|disabled people|trans people|homosexuals)"
)
_YOU = r"(?:you|you all|he|she|him|her|them|they)"

Weighted = tuple[tuple[str, ...], float, str]

WEIGHTED: tuple[Weighted, ...] = (
    (("harassment",), 0.7, r"\byou(?:'re| are) (?:such )?an? (?:\w+ )?(?:idiot|moron|loser|pig|piece of (?:trash|garbage|shit))\b"),
    (("harassment",), 0.7, r"\b(?:fuck|screw) you\b|\bnobody (?:likes|loves|wants) you\b|\byou disgust me\b"),
    (("harassment",), 0.6, r"\byou(?:'re| are) (?:worthless|pathetic|disgusting|subhuman|nothing but trash)\b"),
    (("harassment", "self-harm"), 0.9, r"\b(?:go )?kill yourself\b|\bkys\b"),
    (("harassment", "harassment/threatening", "violence"), 0.9,
     rf"\bi(?:'ll| will| am going to|'m going to|'m gonna| want to) (?:kill|stab|shoot|strangle|murder|hurt|beat) {_YOU}\b"),
    (("harassment", "harassment/threatening", "violence"), 0.8,
     r"\bi know where you live\b.{0,80}\b(?:kill|hurt|regret|pay)\b|\byou(?:'re| are) (?:dead|going to die)\b"),
    (("hate",), 0.9, rf"\b(?:all |those |these )?{_GROUP} are (?:all )?(?:\w+ )?(?:vermin|subhuman|animals|parasites|inferior|filth|scum|a plague)\b"),
    (("hate",), 0.7, rf"\bi hate (?:all )?(?:the )?{_GROUP}\b"),
    (("hate", "hate/threatening", "violence"), 0.9,
     rf"\b(?:kill|exterminate|gas|deport and kill|lynch|shoot|burn) (?:all )?(?:the |those |these )?{_GROUP}\b"),
    (("hate", "hate/threatening", "violence"), 0.9, rf"\b{_GROUP} (?:should|must|deserve to) (?:all )?(?:die|be killed|be exterminated|burn)\b"),
    (("illicit",), 0.8, r"\bhow (?:do i|can i|to|would i) (?:\w+ ){0,3}(?:steal|shoplift|launder money|forge|counterfeit|hack into|pick a lock|hotwire)\b"),
    (("illicit",), 0.8, r"\b(?:cook|make|synthesi[sz]e) (?:crystal )?(?:meth|methamphetamine|heroin|fentanyl|crack|mdma)\b"),
    (("illicit", "illicit/violent", "violence"), 0.9,
     r"\b(?:how (?:do i|can i|to)|instructions (?:for|to)|steps to|recipe for) (?:\w+ ){0,4}(?:bomb|pipe bomb|explosives?|molotov|nerve gas|ricin|silencer)\b"),
    (("illicit", "illicit/violent", "violence"), 0.9, r"\bhow (?:do i|can i|to) (?:\w+ ){0,3}(?:kill|murder|poison) (?:someone|somebody|a person|my \w+)\b"),
    (("self-harm", "self-harm/intent"), 0.9, r"\bi (?:want|wish|am going|'m going|plan|intend|need) to (?:die|kill myself|end my life|hurt myself|cut myself|end it all)\b"),
    (("self-harm", "self-harm/intent"), 0.9, r"\bi(?:'m| am) (?:suicidal|going to kill myself)\b|\bi don'?t want to (?:live|be alive) any ?more\b"),
    (("self-harm",), 0.5, r"\b(?:commit(?:ting)? suicide|cutting myself|self[- ]harm(?:ing)?|starving myself)\b"),
    (("self-harm", "self-harm/instructions"), 0.9,
     r"\b(?:how (?:do i|can i|to)|best way to|painless way to|ways to) (?:\w+ ){0,3}(?:kill myself|commit suicide|hang myself|cut myself|overdose|tie a noose)\b"),
    (("sexual",), 0.8, r"\b(?:blow ?job|hand ?job|cumshot|masturbat(?:e|es|ing)|orgasm(?:s|ed)?|hardcore porn|erotic story|sex scene|have sex with)\b"),
    (("sexual",), 0.6, r"\b(?:naked|nude) (?:photos?|pics?|pictures?|body|selfies?)\b|\bporn(?:o|ography)?\b"),
    (("sexual", "sexual/minors"), 0.95,
     r"\b(?:child|children|kids?|minors?|underage|preteens?|\d{1,2}[- ]year[- ]old (?:girl|boy))\b.{0,60}\b(?:sex|sexual|porn|nude|naked|erotic)\b"),
    (("sexual", "sexual/minors"), 0.95, r"\b(?:sex|sexual|porn|nude|naked|erotic)\b.{0,60}\b(?:child|children|kids?|minors?|underage|preteens?)\b"),
    (("violence",), 0.6, r"\b(?:beat|stab|shoot|strangle|behead|torture)(?:s|ed|ing)? (?:him|her|them|you|someone|people|the \w+) (?:to death|until|repeatedly)\b"),
    (("violence",), 0.6, r"\b(?:mass shooting|shoot up (?:a|the) \w+|bomb the|massacre (?:them|everyone|people))\b"),
    (("violence", "violence/graphic"), 0.8,
     r"\b(?:disembowel|dismember|decapitat|mutilat)(?:s|ed|ing|e|es)?\b|\b(?:entrails|intestines|guts) (?:spilled|spilling|hanging)\b|\bblood (?:sprayed|spurted|gushed)\b"),
)  # fmt: skip
