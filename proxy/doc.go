// Package proxy answers OCI distribution requests (distribution-spec 1.1, pull
// and discovery) from a [storage.Store], which it fills from upstream registries.
//
//	request ─► target ─► tag or list? ─► resolve ─────────► digest ─► open ─► serve
//	                         │            │  fresh: the index says           (ServeContent:
//	                         │            │  else: one check for all waiters  Range, HEAD,
//	                         │            │        no longer than             sendfile)
//	                         │            │        revalidate_timeout
//	                         │            └► upstream fails: stored content
//	                         └ digest ──────────────────────────────►
//
// A tag, a tag list and a referrers list are handled alike, as a pointer
// ([storage.Tag]) from a mutable name to content stored by digest. resolve checks the
// pointer as often as the configuration says; open gets the content.
//
// Checks run under the Proxy's own context, so they continue when the clients that
// wait for them disconnect. If a check fails or takes too long while content is
// stored, its upstream is suspect: clients get the stored content at once, and one
// check at a time runs in the background until one succeeds.
//
// Rules set access, freshness and retention. They are evaluated once a request,
// before any request to an upstream. When a tag is deleted upstream, one goroutine
// finds the content that no other tag refers to, and marks it for eviction.
//
// The content of an image is untrusted. Code that needs several of its manifests
// uses a walk, which limits their number, depth and size.
//
// A request has an id, from its client or a new one. Its context carries the id to
// the log and to requests to upstreams, and its span too if there is a tracer;
// storage and upstream add their spans below it.
//
// Handlers return errors; writeError alone writes them.
package proxy
