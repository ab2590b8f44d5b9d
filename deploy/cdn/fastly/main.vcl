# Fastly in front of Headwater's edges: custom VCL, whole but for the backends, which the service
# has by itself. Written to Fastly's documentation; not tried against it here, unlike Varnish's.
#
# It keeps what a reply's Cache-Control allows, and nothing else: the lifetimes are Headwater's
# settings (--cache-tail, --cache-live-empty). Fastly reads Surrogate-Key and takes it away from what
# readers get. To let a deletion be told:
#
#   --purge-url https://api.fastly.com/service/SERVICE_ID/purge/{key} --purge-method POST
#   --purge-headers-file FILE      with the line `Fastly-Key: TOKEN`, of a token that may purge alone

sub vcl_recv {
#FASTLY recv
  # Location begins with what the client used.
  set req.http.X-Forwarded-Proto = if(req.is_ssl, "https", "http");
  unset req.http.Range;  # edges know no ranges

  # ---- What is passed on: nothing is looked up, kept, or made to wait for another's answer

  if (req.method != "GET") {
    return(pass);  # HEAD too: it tells the tail, a GET does not
  }
  # Who sends Authorization gets an answer of their own. Streams that everybody may read can be kept
  # for those too: let their paths through here, and the replies that say `public` are.
  if (req.http.Authorization) {
    return(pass);
  }
  if (req.url.qs ~ "(^|&)live=sse(&|$)" ||   # events
      req.url.qs ~ "(^|&)offset=now(&|$)") { # another place each time
    return(pass);
  }
  # What the key can't tell apart, though an edge does: escapes, and a name given twice.
  if (req.url.qs ~ "[%+]" || req.url.qs ~ "(^|&)(offset|live|cursor)=.*&\2=") {
    return(pass);
  }

  # ---- The key: host, path, offset, live, cursor; nothing that the answer does not depend on

  set req.url = querystring.filter_except(req.url,
    "offset" querystring.filtersep() "live" querystring.filtersep() "cursor");
  set req.url = querystring.sort(req.url);  # cursor, live, offset
  return(lookup);
}

sub vcl_hash {
  set req.hash += req.url;
  set req.hash += req.http.host;
  if (req.url.qs ~ "(^|&)live=" && req.url.qs !~ "(^|&)cursor=") {
    # A reader without a cursor joins those who came in the same ten seconds: with one key for all of
    # them, whoever never sends one would be given the same 204 over and over while it is kept.
    declare local var.tens INTEGER;
    set var.tens = std.atoi(now.sec);
    set var.tens /= 10;
    set req.hash += var.tens;
  }
#FASTLY hash
  return(hash);
}

# Longer than a long-poll (--long-poll-timeout-s, 20), and than the 15 s after which a silent event
# stream has a comment. Fastly's own is 15 s.
sub vcl_miss {
#FASTLY miss
  set bereq.first_byte_timeout = 30s;
  set bereq.between_bytes_timeout = 30s;
  return(fetch);
}

sub vcl_pass {
#FASTLY pass
  set bereq.first_byte_timeout = 30s;
  set bereq.between_bytes_timeout = 30s;
  return(pass);
}

sub vcl_fetch {
#FASTLY fetch
  if (beresp.http.Content-Type ~ "^text/event-stream") {
    set beresp.do_stream = true;  # events come through as they come
    return(pass);
  }
  # Stale answers are none: an old 204, or an old beginning, could be the wrong one.
  set beresp.grace = 0s;
  set beresp.stale_if_error = 0s;
  set beresp.stale_while_revalidate = 0s;
  # Only whole answers are kept, and only as long as they say: Fastly would keep a 404 that says
  # nothing. An edge calls a 404 or a 410 cacheable for those alone who waited while their stream
  # went away.
  if ((beresp.status != 200 && beresp.status != 204 && beresp.status != 404 && beresp.status != 410) ||
      beresp.http.Cache-Control !~ "max-age=[1-9]" ||
      beresp.http.Cache-Control ~ "private|no-store|no-cache") {
    # Whoever waited for this goes to an edge now, all at once and not one after the other; a second
    # later readers are collapsed again.
    set beresp.ttl = 1s;
    return(pass);
  }
  return(deliver);
}

sub vcl_error {
#FASTLY error
  if (obj.status == 502 || obj.status == 504) {
    # No edge answers: as an edge says it when it can't, so that clients come back.
    set obj.status = 503;
    set obj.http.Retry-After = "1";
    set obj.http.Cache-Control = "no-store";
    set obj.http.Access-Control-Allow-Origin = "*";
  }
  return(deliver);
}

sub vcl_deliver {
#FASTLY deliver
  return(deliver);
}
