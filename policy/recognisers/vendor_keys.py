"""The formats of API keys, by vendor.

Most formats are from the secret scanner gitleaks. ``python -m supply_chain.vendor_keys`` writes them to
``data/vendor_keys.json``, with the licence of gitleaks (MIT). The formats below are missing there, or older or shorter;
they are from the documentation of the vendors. The last part of a key has no maximum length.
"""

import json
import re
from importlib.resources import files
from typing import Any

_MORE = (
    # Clouds and their tools.
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16,}",
    r"LTAI[A-Za-z0-9]{12,}",
    r"AKID[A-Za-z0-9]{32,}",
    r"ya29\.[A-Za-z0-9_\-]{20,}",
    r"1//0[A-Za-z0-9_\-]{40,}",
    r"GOCSPX-[A-Za-z0-9_\-]{20,}",
    r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.\-]{31,}",
    r"hvs\.[A-Za-z0-9_\-]{24,}",
    r"hvb\.[A-Za-z0-9_\-]{100,}",
    r"dckr_pat_[A-Za-z0-9_\-]{20,}",
    r"tskey-[a-z]{2,8}-[A-Za-z0-9\-]{16,}",
    r"fm[12][ar]?_[A-Za-z0-9+/=_\-]{60,}",
    r"fo1_[A-Za-z0-9_\-]{40,}",
    r"HRKU-[A-Za-z0-9_\-]{36,}",
    r"nfp_[A-Za-z0-9_]{36,}",
    r"rnd_[A-Za-z0-9]{28,}",
    r"sbp_[0-9a-f]{40,}",
    r"sb_secret_[A-Za-z0-9_\-]{20,}",
    r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=\-]{30,}",
    r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_\-]{2,35}\.)?[A-Za-z0-9]{40,}",
    r"cio[A-Za-z0-9]{32,}",
    r"napi_[a-z0-9]{60,}",
    r"mdb_sa_sk_[A-Za-z0-9_\-]{40,}",
    r"cf(?:ut|at|k)_[A-Za-z0-9]{40,}",
    r"vc[pkiar]_[A-Za-z0-9]{24,}",
    r"AAAA[A-Za-z0-9_\-]{7}:APA91b[A-Za-z0-9_\-]{100,}",
    r"3MVG9[A-Za-z0-9_.]{60,}",
    # Code, builds and packages.
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"gl(?:pat|ptt|dt|rt|cbt|agent|soat|ft|imt|oas|ffct)-[A-Za-z0-9_\-]{20,}",
    r"ATATT3[A-Za-z0-9_\-=]{60,}",
    r"ATBB[A-Za-z0-9]{28,}",
    r"pypi-[A-Za-z0-9_\-]{40,}",
    r"oy2[a-z0-9]{43,}",
    r"CCIPAT_[A-Za-z0-9_]{40,}",
    r"bkua_[0-9a-f]{40,}",
    r"sq[upa]_[0-9a-f]{40,}",
    r"sgp_[A-Za-z0-9_]{40,}",
    r"lin_(?:api|oauth)_[A-Za-z0-9]{40,}",
    r"snyk_[A-Za-z0-9_.\-]{30,}",
    # Models.
    r"sk-[A-Za-z0-9_\-]{20,}",
    r"sk_[0-9a-f]{48,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"gsk_[A-Za-z0-9]{40,}",
    r"xai-[A-Za-z0-9]{60,}",
    r"pplx-[A-Za-z0-9]{40,}",
    r"r8_[A-Za-z0-9]{37,}",
    r"hr_[A-Za-z0-9]{8,64}_[A-Za-z0-9_\-]{20,}",
    r"nvapi-[A-Za-z0-9_\-]{40,}",
    r"fw_[A-Za-z0-9]{20,}",
    r"pcsk_[A-Za-z0-9_]{40,}",
    r"jina_[A-Za-z0-9_]{40,}",
    r"tvly-[A-Za-z0-9\-]{24,}",
    r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{32,}",
    r"tgp_v1_[A-Za-z0-9_\-]{40,}",
    r"csk-[a-z0-9]{40,}",
    r"fc-[0-9a-f]{32,}",
    # Messages.
    r"xox[abeoprs]-[A-Za-z0-9\-]{10,}",
    r"xapp-[0-9]-[A-Za-z0-9\-]{10,}",
    r"T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{20,}",
    r"SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{32,}",
    r"(?:SK|AC)[0-9a-f]{32,}",
    r"key-[0-9a-f]{32,}",
    r"[0-9a-f]{32}-us\d{1,2}",
    r"re_[A-Za-z0-9_]{24,}",
    r"(?:bot)?\d{8,10}:[A-Za-z0-9_\-]{35,}",
    r"[MNO][A-Za-z0-9]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,}",
    # Money and shops.
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    r"whsec_[A-Za-z0-9+/=_\-]{24,}",
    r"rzp_(?:live|test)_[A-Za-z0-9]{14,}",
    r"access_token\$(?:production|sandbox)\$[0-9a-z]{16}\$[0-9a-f]{32,}",
    r"shp(?:at|ca|pa|ss|ua)_[0-9a-fA-F]{32,}",
    r"sq0(?:atp|csp)-[A-Za-z0-9_\-]{22,}",
    r"EAA[A-Za-z0-9]{60,}",
    r"FLWSECK(?:_TEST)?-[A-Za-z0-9\-]{12,}",
    r"(?:live|test)_[A-Za-z0-9]{30,}",
    r"access-(?:sandbox|development|production)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    # Documents, figures and logs.
    r"pk_\d{6,9}_[A-Z0-9]{32,}",
    r"[12]/\d{13,17}(?:/\d{13,17})?:[0-9a-f]{32,}",
    r"ops_ey[A-Za-z0-9_\-=]{60,}",
    r"ph[cx]_[A-Za-z0-9]{40,}",
    r"\d{1,8}\|[A-Za-z0-9]{40,}",
    r"rdme_[a-z0-9]{60,}",
    r"ntn_[A-Za-z0-9]{40,}",
    r"secret_[A-Za-z0-9]{43,}",
    r"figd_[A-Za-z0-9_\-]{36,}",
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64,}",
    r"pat-(?:na|eu)\d-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    r"CFPAT-[A-Za-z0-9_\-]{43,}",
    r"tfp_[A-Za-z0-9_\-.=]{40,}",
    r"[ps]k\.ey[A-Za-z0-9_\-]{40,200}\.[A-Za-z0-9_\-]{20,}",
    r"sl\.[A-Za-z0-9_\-=]{100,}",
    r"NR(?:AK|JS|II|AA)-[A-Za-z0-9_\-]{19,}",
    r"gl(?:sa|c)_[A-Za-z0-9_+/=]{32,}",
    r"sntry[su]_[A-Za-z0-9+/=_]{40,}",
    r"(?:sdk|api|mob)-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}",
)

_TAKEN: Any = json.loads((files("headrace.policy") / "data/vendor_keys.json").read_text())

VENDORS: tuple[str, ...] = (*dict.fromkeys(_TAKEN["alone"].values()), *_MORE)
"""Keys that identify their vendor."""

NAMED: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (names, re.compile(key)) for names, key in _TAKEN["named"].values()
)
"""Vendors' names, and keys of theirs that look like any other digits and letters."""
