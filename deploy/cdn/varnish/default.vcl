# Varnish as a cache in front of Headwater's edges, whole and as it is tested (7.1). To use it,
# change the hosts of the edges.
#
#   HEADWATER_PURGE_SECRET=... varnishd -f default.vcl -a :80 -s malloc,4G -p thread_pool_max=5000
#
# It keeps what a reply's Cache-Control allows, and nothing else: the lifetimes are Headwater's
# settings (--cache-tail, --cache-live-empty). A reader of events takes two threads, one who waits in
# a long-poll none.
vcl 4.1;

import directors;
import std;

# ---- Edges

probe alive {
    .url = "/health";
    .interval = 2s;
    .timeout = 1s;
    .window = 3;
    .threshold = 2;
    .initial = 2;  # taken for well until it is seen otherwise
}

# The timeouts are longer than a long-poll (--long-poll-timeout-s, 20) and than the 15 s after which a
# silent event stream has a comment.
backend edge_1 {
    .host = "edge-1";
    .port = "4437";
    .connect_timeout = 2s;
    .first_byte_timeout = 30s;
    .between_bytes_timeout = 30s;
    .probe = alive;
}

backend edge_2 {
    .host = "edge-2";
    .port = "4437";
    .connect_timeout = 2s;
    .first_byte_timeout = 30s;
    .between_bytes_timeout = 30s;
    .probe = alive;
}

sub vcl_init {
    new edges = directors.hash();  # a stream is in the memory of one edge, not of each
    edges.add_backend(edge_1, 1.0);
    edges.add_backend(edge_2, 1.0);
}

sub vcl_recv {
    # Ours alone, whatever a client sends.
    set req.http.X-Path = regsub(req.url, "[?].*$", "");
    set req.http.X-Query = regsub(req.url, "^[^?]*[?]?", "");
    unset req.http.X-Key;
    set req.backend_hint = edges.backend(req.http.X-Path);

    if (req.method == "PURGE") {
        call purge;
    }

    # Location begins with what the client used, also behind something that ends TLS for us.
    if (req.http.X-Forwarded-Proto !~ "^https?$") {
        set req.http.X-Forwarded-Proto = "http";
    }
    unset req.http.Range;  # edges know no ranges

    # ---- What is passed on: nothing is looked up, kept, or made to wait for another's answer

    if (req.method != "GET") {
        return (pass);  # HEAD too: it tells the tail, a GET does not
    }
    # Who sends Authorization gets an answer of their own. Streams that everybody may read can be kept
    # for those too: name their paths here, and the replies that say `public` are.
    if (req.http.Authorization && req.http.X-Path !~ "^/-none-/") {
        return (pass);
    }
    if (req.http.X-Query ~ "(?:^|&)live=(?!long-poll(?:&|$))" ||  # events
        req.http.X-Query ~ "(?:^|&)offset=now(?:&|$)") {          # another place each time
        return (pass);
    }
    # What the key can't tell apart, though an edge does: escapes in names or values that it knows, a
    # name without a value, and one given twice (400).
    if (req.http.X-Query ~ "(?:^|&)[^&=]*[%+]" ||
        req.http.X-Query ~ "(?:^|&)(?:offset|live|cursor)=[^&]*[%+]" ||
        req.http.X-Query ~ "(?:^|&)(?:offset|live|cursor)(?:&|$)" ||
        req.http.X-Query ~ "(?:^|&)(offset|live|cursor)=.*&\1=") {
        return (pass);
    }

    # ---- The key: host, path, offset, live, cursor; nothing that the answer does not depend on

    set req.http.X-Key = req.http.Host + req.http.X-Path + "?";
    if (req.http.X-Query ~ "(?:^|&)offset=") {
        set req.http.X-Key = req.http.X-Key +
            regsub(req.http.X-Query, "^(?:.*&)?(offset=[^&]*).*$", "\1");
    }
    if (req.http.X-Query ~ "(?:^|&)live=") {
        set req.http.X-Key = req.http.X-Key + "&live=long-poll";
        if (req.http.X-Query ~ "(?:^|&)cursor=") {
            set req.http.X-Key = req.http.X-Key + "&" +
                regsub(req.http.X-Query, "^(?:.*&)?(cursor=[^&]*).*$", "\1");
        } else {
            # A reader without a cursor joins those who came in the same ten seconds. With one key
            # for all of them, whoever never sends a cursor would be given the same 204 over and over
            # while it is kept; ten seconds are less than a long-poll lasts, so the next poll has
            # another key.
            set req.http.X-Key = req.http.X-Key + "&since=" +
                regsub("" + std.time2integer(now, 0), "[0-9]$", "");
        }
    }
    return (hash);
}

sub vcl_hash {
    hash_data(req.http.X-Key);
    return (lookup);
}

# Everything that is kept of a stream: the origin calls this when one is deleted.
sub purge {
    if (std.getenv("HEADWATER_PURGE_SECRET") == "" ||
        req.http.Authorization != "Bearer " + std.getenv("HEADWATER_PURGE_SECRET")) {
        return (synth(403, "Wrong or no purge secret"));
    }
    if (req.http.Surrogate-Key !~ "^[A-Za-z0-9._~/%:@=-]+$") {
        return (synth(400, "PURGE needs one Surrogate-Key"));
    }
    # Of the kept reply alone, so that the ban lurker can do it in the background and forget it.
    if (!std.ban("obj.http.Surrogate-Key ~ (^|[[:space:]])" +
            regsuball(req.http.Surrogate-Key, "[.]", "[.]") + "([[:space:]]|$)")) {
        return (synth(500, std.ban_error()));
    }
    return (synth(204, "Purged"));
}

sub vcl_backend_fetch {
    unset bereq.http.X-Path;
    unset bereq.http.X-Query;
    unset bereq.http.X-Key;
    return (fetch);
}

sub vcl_backend_response {
    if (bereq.uncacheable) {
        return (deliver);  # passed: it streams, events too
    }
    # A chunk is whole before anybody gets it: from an edge that dies in the middle nobody gets a part,
    # and those who wait for it get it as one.
    set beresp.do_stream = false;

    # Stale answers are none: an old 204, or an old beginning, could be the wrong one. What is over is
    # asked for again by its tag, which costs no body.
    set beresp.grace = 0s;
    set beresp.keep = 10m;

    # Only whole answers are kept, and only as long as they say: Varnish would keep a 204 or a 404
    # that says nothing for two minutes. A 200 without a length could end early, and nobody would know.
    # An edge calls a 404 or a 410 cacheable for those alone who waited while their stream went away.
    if ((beresp.status != 200 && beresp.status != 204 &&
            beresp.status != 404 && beresp.status != 410) ||
        (beresp.status == 200 && !beresp.http.Content-Length) ||
        beresp.http.Cache-Control !~ "max-age=[1-9]" ||
        beresp.http.Cache-Control ~ "(?i)private|no-store|no-cache" ||
        (bereq.http.Authorization && beresp.http.Cache-Control !~ "(?i)public") ||
        beresp.ttl <= 0s) {
        call unkept;
        return (deliver);
    }
    return (deliver);
}

sub vcl_backend_error {
    # No edge answers: as an edge says it when it can't, so that clients come back.
    call unkept;
    set beresp.status = 503;
    set beresp.http.Retry-After = "1";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Access-Control-Allow-Origin = "*";
    set beresp.http.X-Content-Type-Options = "nosniff";
    return (deliver);
}

# Whoever waited for this goes to an edge now, all at once and not one after the other; a second later
# readers are collapsed again.
sub unkept {
    set beresp.uncacheable = true;
    set beresp.ttl = 1s;
    set beresp.grace = 0s;
    set beresp.keep = 0s;
}

sub vcl_deliver {
    if (obj.uncacheable) {
        set resp.http.X-Cache = "PASS";
    } elsif (obj.hits > 0) {
        set resp.http.X-Cache = "HIT";
    } else {
        set resp.http.X-Cache = "MISS";
    }
    return (deliver);
}
