"""Configurations of hosted CDNs: their form, and that they say what the code says."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
from multidict import CIMultiDict

from shared.config import Settings
from shared.protocol import request
from shared.protocol.errors import ProtocolError
from shared.protocol.surrogate import surrogate_headers
from tests.service import ROOT

FOLDER: Final = ROOT / "deploy" / "cdn"
VCL: Final = (FOLDER / "fastly" / "main.vcl").read_text()
CLOUDFLARE: Final = json.loads((FOLDER / "cloudflare" / "main.tf.json").read_text())
CLOUDFRONT: Final = json.loads((FOLDER / "cloudfront" / "template.json").read_text())["Resources"]
RULES: Final = CLOUDFLARE["resource"]["cloudflare_ruleset"]["headwater"]["rules"]
QUERY: Final = ["offset", "live", "cursor"]


def test_names_of_the_key_are_all_that_reads_look_at() -> None:
    for name in QUERY:  # a name that is known may not be given twice
        with pytest.raises(ProtocolError):
            request.parse_read(f"offset=-1&live=long-poll&cursor=1&{name}=1", CIMultiDict())
    request.parse_read("offset=-1&other=1&other=1", CIMultiDict())
    key = CLOUDFRONT["Key"]["Properties"]["CachePolicyConfig"]
    parts = key["ParametersInCacheKeyAndForwardedToOrigin"]
    assert parts["QueryStringsConfig"]["QueryStrings"] == QUERY
    custom = RULES[0]["action_parameters"]["cache_key"]["custom_key"]
    assert custom["query_string"]["include"]["list"] == QUERY
    (kept,) = re.findall(r"filter_except\(req\.url,\s*(.*?)\);", VCL, re.DOTALL)
    assert re.findall(r'"(\w+)"', kept) == QUERY
    code = "\n".join(CLOUDFRONT["Order"]["Properties"]["FunctionCode"]["Fn::Join"][1])
    (names,) = re.findall(r"of \[(.*?)\]", code)
    assert re.findall(r"'(\w+)'", names) == QUERY


def test_nobody_waits_for_less_than_a_long_poll_lasts() -> None:
    longest_s = max(Settings().long_poll_timeout_s, Settings().sse_heartbeat_s)
    told = re.findall(r"(first_byte|between_bytes)_timeout = (\d+)s", VCL)
    assert [name for name, _ in told] == ["first_byte", "between_bytes"] * 2
    assert all(int(seconds) > longest_s for _, seconds in told)
    origin = CLOUDFRONT["Distribution"]["Properties"]["DistributionConfig"]["Origins"][0]
    assert origin["CustomOriginConfig"]["OriginReadTimeout"] > longest_s


def test_errors_are_never_kept_by_a_lifetime_of_the_cdn() -> None:
    config = CLOUDFRONT["Distribution"]["Properties"]["DistributionConfig"]
    errors = config["CustomErrorResponses"]
    # All that CloudFront keeps for 10 s by itself.
    assert {404, 414, 500, 501, 502, 503, 504} <= {error["ErrorCode"] for error in errors}
    assert {error["ErrorCachingMinTTL"] for error in errors} == {0}
    key = CLOUDFRONT["Key"]["Properties"]["CachePolicyConfig"]
    assert (key["MinTTL"], key["DefaultTTL"]) == (0, 0)
    for rule in RULES:
        assert rule["action_parameters"].get("edge_ttl", {}).get("mode") in ("respect_origin", None)
    assert 'beresp.http.Cache-Control ~ "private|no-store|no-cache"' in VCL


def test_readers_do_not_get_the_names_for_purges() -> None:
    policy = CLOUDFRONT["Shown"]["Properties"]["ResponseHeadersPolicyConfig"]
    removed = {item["Header"] for item in policy["RemoveHeadersConfig"]["Items"]}
    assert removed == set(surrogate_headers("x"))


def test_what_the_template_refers_to_is_in_it() -> None:
    known = {*CLOUDFRONT, "EdgesDomain", "AWS::Region"}
    named = {name for found in _references(CLOUDFRONT) for name in found}
    assert named <= known
    assert set(CLOUDFRONT) - {"Distribution"} <= named


def test_settings_of_the_purges_are_settings() -> None:
    page = (FOLDER / "HOSTED.md").read_text() + VCL
    flags = set(re.findall(r"(--purge-[a-z-]+)", page))
    fields = set(Settings.__dataclass_fields__)
    assert flags
    assert {flag[2:].replace("-", "_") for flag in flags} <= fields


def _references(value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        if "Ref" in value:
            yield [value["Ref"]]
        if "Fn::GetAtt" in value:
            yield value["Fn::GetAtt"][:1]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one)
